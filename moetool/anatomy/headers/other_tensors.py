"""Tensors in a checkpoint's files that are not parameters of the model, and the reasons."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from moetool.anatomy.components import Component
from moetool.anatomy.config_fields import find_num_layers, find_num_mtp_layers
from moetool.anatomy.headers.placed_tensors import (
    Layer,
    NameForm,
    PlacedTensor,
    find_component_of_mtp,
    find_place,
    find_routed_layers,
)
from moetool.anatomy.headers.stored_tensors import Role

_MTP = re.compile(r"(^|\.)mtp(\.|_)|(^|\.)(nextn|eh_proj|enorm|hnorm|shared_head)\.")
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")
_OPTIMIZER = re.compile(r"^(optimizer|optim|exp_avg|exp_avg_sq)(\.|_)|\.(exp_avg|exp_avg_sq)$")
_SHARED = re.compile(r"^(model\.)?(encoder|decoder)\.embed_tokens\.weight$")


class Reason(StrEnum):
    """The reason why tensors in the files are not parameters of the model, in words.

    Attributes:
        MTP: They predict tokens after the next one.
        BEYOND: The numbers of their layers exceed the number of layers in the configuration.
        SCALES: Quantized weights are scaled, shifted, ordered or looked up by them.
        BUFFERS: They are state that no training step changes.
        TIED_HEAD: They repeat the embedding.
        SHARED_EMBEDDING: They repeat the embedding that both stacks of an encoder-decoder share.
        ADAPTERS: They are low-rank updates of weights that are there too.
        OPTIMIZER: They are state of the training.
        ROPE: They are factors of rotary positions.
        ABSORBED: They repeat the expansion of a latent.
    """

    MTP = "layers that predict further tokens (MTP), which transformers does not build"
    BEYOND = "layers beyond the number that config.json states"
    SCALES = "scales of quantized weights"
    BUFFERS = "buffers, which are not parameters"
    TIED_HEAD = "a head that is tied to the embedding, stored a second time"
    SHARED_EMBEDDING = "the embedding that both stacks share, stored again for each"
    ADAPTERS = "LoRA adapters, which are not the model's own weights"
    OPTIMIZER = "the state of an optimizer"
    ROPE = "factors of rotary positions, which follow from the configuration"
    ABSORBED = "the latent's expansion, stored again for attention that doesn't absorb it"


_OF_ROLES = {Role.SCALE: Reason.SCALES, Role.BUFFER: Reason.BUFFERS}


@dataclass(frozen=True)
class OtherTensors:
    """Tensors in the files that are not parameters of the model, for one reason.

    Attributes:
        num_tensors: Number of tensors.
        num_params: Parameters in them, or elements if they are not parameters at all.
        num_bytes: Bytes in the files.
        example: The name of one of them.
        components: `num_params` by component.
    """

    reason: Reason
    num_tensors: int
    num_params: int
    num_bytes: int
    example: str
    components: Mapping[Component, int]

    @property
    def are_parameters(self) -> bool:
        """Whether they are parameters, though not of this model."""
        return self.reason not in (Reason.SCALES, Reason.BUFFERS, Reason.ROPE)


def sort_out(
    tensors: Sequence[PlacedTensor],
    *,
    text_config: Mapping[str, object],
    is_tied: bool | None,
) -> tuple[list[PlacedTensor], tuple[OtherTensors, ...]]:
    """Return the tensors that hold the model's parameters, and in groups those that do not.

    Args:
        tensors: All of the checkpoint's.
        text_config: What config.json says of the text model.
        is_tied: What it says of the embedding being the head; None if nothing.
    """
    kept: list[PlacedTensor] = []
    others: dict[Reason, list[PlacedTensor]] = {}
    by_words = {form: _find_reason_by_words(form.text) for form in {t.form for t in tensors}}
    heads = {form for form in by_words if _is_head(form)} if is_tied else set()
    beyond = _find_beyond(tensors, by_words, text_config)
    shared = {
        tensor.stored.header.shape
        for tensor in tensors
        if tensor.form.text in ("shared.weight", "model.shared.weight")
    }
    for tensor in tensors:
        stored, form, layer = tensor
        reason = by_words[form]
        if reason is None and layer in beyond and _is_in_stack(form):
            reason = beyond[layer]
        if reason is None:
            reason = _OF_ROLES.get(stored.role)
        if reason is None and form in heads:
            reason = Reason.TIED_HEAD
        if reason is None and stored.header.shape in shared and _SHARED.search(form.text):
            reason = Reason.SHARED_EMBEDDING
        if reason is None:
            kept.append(tensor)
        else:
            others.setdefault(reason, []).append(tensor)
    routed = find_routed_layers(kept)
    return kept, tuple(_describe(reason, others[reason], routed) for reason in others)


def _find_reason_by_words(text: str) -> Reason | None:
    if _OPTIMIZER.search(text):
        return Reason.OPTIMIZER
    if _ADAPTER.search(text):
        return Reason.ADAPTERS
    return Reason.MTP if _MTP.search(text) else None


def _is_head(form: NameForm) -> bool:
    return form.in_dense_layer.component is Component.LM_HEAD


def _is_in_stack(form: NameForm) -> bool:
    """Return whether the number in a name is the number of a layer of the text model."""
    return not form.is_of_tower and "layers.0." in form.text


def _find_beyond(
    tensors: Iterable[PlacedTensor],
    by_words: Mapping[NameForm, Reason | None],
    text_config: Mapping[str, object],
) -> dict[Layer, Reason]:
    """Return the layers whose numbers exceed those of config.json, with the reason for each.

    They predict further tokens if they have the modules that mix in the next token, or if config.json
    states that number of such layers.
    """
    num_layers = find_num_layers(text_config)
    if num_layers is None:
        return {}
    beyond: dict[Layer, Reason] = {}
    for _, form, layer in tensors:
        if layer[1] is None or layer[1] < num_layers or not _is_in_stack(form):
            continue
        if by_words[form] is Reason.MTP or layer not in beyond:
            beyond[layer] = by_words[form] or Reason.BEYOND
    if len({number for _, number in beyond}) == find_num_mtp_layers(text_config):
        return dict.fromkeys(beyond, Reason.MTP)
    return beyond


def _describe(
    reason: Reason, tensors: Sequence[PlacedTensor], routed_in_model: Collection[Layer]
) -> OtherTensors:
    routed = find_routed_layers(tensors)
    find_component = find_component_of_mtp
    if reason is not Reason.MTP:
        # Layers that predict further tokens are numbered separately, or like the model's.
        routed |= set(routed_in_model)
        find_component = _find_component
    counts: dict[tuple[NameForm, Layer], int] = {}
    for stored, form, layer in tensors:
        is_none = reason in (Reason.SCALES, Reason.BUFFERS)
        number = stored.header.num_elements if is_none else stored.num_params or 0
        counts[form, layer] = counts.get((form, layer), 0) + number
    components: dict[Component, int] = {}
    for (form, layer), number in counts.items():
        component = find_component(form, layer, routed)
        components[component] = components.get(component, 0) + number
    return OtherTensors(
        reason=reason,
        num_tensors=len(tensors),
        num_params=sum(components.values()),
        num_bytes=sum(tensor.stored.header.num_bytes for tensor in tensors),
        example=tensors[0].stored.header.name,
        components={name: number for name, number in components.items() if number},
    )


def _find_component(form: NameForm, layer: Layer, routed: Collection[Layer]) -> Component:
    return find_place(form, layer, routed).component
