"""The tensors of a checkpoint's files with the places that their names give them.

A large checkpoint has a hundred thousand names of a hundred forms. Facts in a name are read once for
each form, and each tensor has only a plain tuple.
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

# No layer has a longer number, and Python refuses to parse thousands of digits.
_MOST_DIGITS = 9

# The stack and the number of a layer.
Layer = tuple[str, int | None]


@dataclass(frozen=True, eq=False, slots=True)
class NameForm:
    """The facts in all names that differ only in numbers between dots.

    Attributes:
        text: The name, with 0 for each such number.
        stack: `encoder` or `decoder`.
        holds_experts: Whether it is a name of routed experts.
        is_of_one_expert: Whether it names a single expert.
        is_of_tower: Whether it is a name in a vision or audio tower.
        in_routed_layer: The tensor's place if its layer has routed experts.
        in_dense_layer: The tensor's place if not.
        is_understood: Whether a rule matches the name in a layer of either kind.
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
    """A tensor and the place that its name gives it.

    Attributes:
        stored: The tensor and its role.
        form: The facts in its name.
        layer: The stack and number of its layer; no number outside layers.
    """

    stored: StoredTensor
    form: NameForm
    layer: Layer


def place_tensors(
    tensors: Iterable[StoredTensor], *, aliases: Mapping[str, str] | None = None
) -> list[PlacedTensor]:
    """Return tensors with the facts in their names.

    Args:
        tensors: All tensors of a checkpoint.
        aliases: Names to read instead of those in the files, by the latter.
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
    """Return the place of a tensor.

    Args:
        form: The facts in its name.
        layer: The tensor's layer.
        routed: The layers that have routed experts.
    """
    place = form.in_routed_layer if layer in routed else form.in_dense_layer
    if place.layer is None:
        return place
    return Place(place.stack, layer[1], place.component)


def find_component_of_mtp(form: NameForm, layer: Layer, routed: Collection[Layer]) -> Component:
    """Return the component of a tensor in a layer that predicts further tokens.

    Such a layer has its own embedding and head, which are copies of the model's.
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
