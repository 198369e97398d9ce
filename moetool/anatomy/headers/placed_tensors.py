"""The tensors of a checkpoint's files with the places that their names give them.

A large checkpoint has a hundred thousand names and a hundred forms of names: what is read off a name
is read once for every form, and what there is one of for every tensor is a plain tuple.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.headers.stored_tensors import Role, StoredTensor
from moetool.anatomy.headers.tensor_names import (
    holds_experts,
    is_understood,
    name_layer,
    place_tensor,
)

_EXPERT_NUMBER = re.compile(r"experts\.(?:expert_)?(\d+)\.")
_HEAD = re.compile(r"(shared_head\.(head|output)|lm_head)\.")

# No layer has a longer number, and Python refuses to read thousands of digits.
_MOST_DIGITS = 9

# Layers are told apart by stack and number.
Layer = tuple[str, int | None]


@dataclass(frozen=True, eq=False, slots=True)
class NameForm:
    """What all names tell that differ in numbers between dots alone.

    Attributes:
        text: The name, with a 0 for each of them.
        stack: `encoder` or `decoder`.
        holds_experts: Whether it is one of a layer's routed experts.
        is_of_one_expert: Whether it names the one expert that it belongs to.
        is_of_tower: Whether it is one of a vision or audio tower.
        in_routed_layer: Where it belongs if its layer has routed experts.
        in_dense_layer: Where it belongs if not.
        is_understood: Whether the name says that, in a layer of either kind.
    """

    text: str
    stack: str
    holds_experts: bool
    is_of_one_expert: bool
    is_of_tower: bool
    in_routed_layer: Place
    in_dense_layer: Place
    is_understood: bool


class PlacedTensor(NamedTuple):
    """A tensor and where its name puts it.

    Attributes:
        stored: The tensor and what it stands for.
        form: What its name tells.
        layer: The stack and number of its layer; no number outside layers.
    """

    stored: StoredTensor
    form: NameForm
    layer: Layer


def place_tensors(
    tensors: Iterable[StoredTensor], *, aliases: Mapping[str, str] | None = None
) -> list[PlacedTensor]:
    """Return the tensors with what their names tell.

    Args:
        tensors: All of a checkpoint's.
        aliases: Names that say more, of tensors by the names that they have in the files.
    """
    aliases = aliases or {}
    forms: dict[str, NameForm] = {}
    placed = []
    for tensor in tensors:
        name = tensor.header.name
        words = aliases.get(name, name).split(".")
        last = words.pop()
        numbers = [word for word in words if word.isdecimal()]
        if numbers:
            words = ["0" if word.isdecimal() else word for word in words]
        text = ".".join([*words, last])
        form = forms.get(text)
        if form is None:
            form = forms[text] = _read_form(text)
        layer = int(numbers[0]) if numbers and len(numbers[0]) <= _MOST_DIGITS else None
        placed.append(PlacedTensor(tensor, form, (form.stack, layer)))
    return placed


def find_expert(tensor: PlacedTensor) -> str | None:
    """Return the number of the one expert that a tensor belongs to; None if there are several."""
    found = _EXPERT_NUMBER.search(tensor.stored.header.name)
    return found[1] if found else None


def find_routed_layers(tensors: Iterable[PlacedTensor]) -> set[Layer]:
    """Return the layers that tensors of routed experts belong to."""
    return {
        tensor.layer
        for tensor in tensors
        if tensor.form.holds_experts and tensor.stored.role is Role.PARAMETER
    }


def find_place(form: NameForm, layer: Layer, routed: Collection[Layer]) -> Place:
    """Return where a tensor belongs.

    Args:
        form: What its name tells.
        layer: Its layer.
        routed: The layers that have routed experts.
    """
    place = form.in_routed_layer if layer in routed else form.in_dense_layer
    if place.layer is None:
        return place
    return Place(place.stack, layer[1], place.component)


def find_component_of_mtp(form: NameForm, layer: Layer, routed: Collection[Layer]) -> Component:
    """Return what a tensor of a layer that predicts further tokens is part of.

    Such a layer has an embedding and a head of its own, copies of the model's.
    """
    if "embed_tokens." in form.text:
        return Component.EMBEDDING
    if _HEAD.search(form.text):
        return Component.LM_HEAD
    return find_place(form, layer, routed).component


def _read_form(text: str) -> NameForm:
    in_routed_layer = place_tensor(text, is_in_routed_layer=True)
    return NameForm(
        text=text,
        stack=name_layer(text)[0],
        holds_experts=holds_experts(text),
        is_of_one_expert=_EXPERT_NUMBER.search(text) is not None,
        is_of_tower=in_routed_layer.component in TOWERS,
        in_routed_layer=in_routed_layer,
        in_dense_layer=place_tensor(text, is_in_routed_layer=False),
        is_understood=any(
            is_understood(text, is_in_routed_layer=routed) for routed in (True, False)
        ),
    )
