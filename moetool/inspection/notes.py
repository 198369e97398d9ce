"""Notes on a model's figures: everything that a number alone can't say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from moetool.anatomy.components import Component
from moetool.anatomy.config_fields import find_num_mtp_layers
from moetool.anatomy.parameters import ActiveDefinition, ParameterTable

if TYPE_CHECKING:
    from moetool.anatomy.headers.other_tensors import OtherTensors
    from moetool.anatomy.routing.moe_layers import FoundExperts
    from moetool.anatomy.skeleton.description import Anatomy
    from moetool.checkpoint.layouts.mergekit import ExpertSources
    from moetool.errors import MoetoolError
    from moetool.inspection.figures import Flops

_DEQUANTIZED = (
    "dtype and bytes are those of the dequantized weights; `moetool memory-estimate` shows what they "
    "take as loaded."
)


def note_routing(experts: FoundExperts, anatomy: Anatomy, table: ParameterTable) -> Iterator[str]:
    """Yield the notes on a model's routing and its active parameters."""
    rules = {layer.rule for layer in experts.layers}
    if experts.is_dense:
        yield "Dense model: every text token uses all parameters except vision and audio towers."
    yield from note_unread(experts)
    if any(layer.top_k is None for layer in anatomy.routed_layers):
        yield (
            "Active parameters unknown: the number of experts per token could not be determined."
        )
    identity = {layer.num_identity_experts for layer in anatomy.routed_layers} - {0}
    active = table.count_active(ActiveDefinition.ALL)
    if identity:
        yield (
            f"{max(identity)} experts of each layer return their input unchanged and have no parameters: "
            "the number of other experts differs from token to token."
        )
    elif active is not None and active.exact is None:
        yield (
            "Two stacks share their experts and may choose the same ones or different ones, so the "
            "number of active parameters varies."
        )
    if any(rule.runs_all_experts for rule in rules):
        yield (
            "transformers runs all experts on every token, those not chosen on zeros. Active counts the "
            "chosen ones; FLOPs count all that run."
        )
    for rule in rules:
        if rule.inexact_because:
            yield f"Active counts what the router chooses; {rule.inexact_because}."
    capacity = {layer.style.capacity for layer in anatomy.routed_layers if layer.style} - {None}
    if capacity:
        yield (
            f"An expert takes at most {capacity.pop()} tokens of a sequence; further tokens run no "
            "expert. Active counts a token that runs one."
        )
    if anatomy.is_encoder_decoder:
        yield "Two stacks: active parameters are those of one token in each."
    if any(layer.style and layer.style.scores is None for layer in anatomy.routed_layers):
        yield "How some routers normalise their scores could not be inferred from their output."


def note_unread(experts: FoundExperts) -> Iterator[str]:
    """Yield the parts of a model that are experts, or may be, and whose routing is not known."""
    from moetool.anatomy.routing.routing_signs import describe_signs

    for seen in describe_signs(experts.signs):
        others = "other " if experts.layers or experts.unreadable else ""
        yield (
            f"Active parameters unknown: no {others}routed experts were recognised, but parts of the "
            f"model may be experts: {seen}."
        )
    if experts.unreadable:
        yield (f"Active parameters unknown: the routing of {experts.unreadable[0]} can't be read.")


def note_flops(anatomy: Anatomy, flops: Flops | None) -> Iterator[str]:
    """Yield why a generated token takes many more FLOPs than a token of the prompt."""
    if flops is None or flops.decode is None or not flops.num_prompt_tokens:
        return
    is_latent = any(mixer.kind == "latent attention" for mixer in anatomy.mixers)
    if is_latent and flops.decode > 2 * flops.prefill:
        yield (
            "Most FLOPs of a generated token are due to transformers' latent attention: it expands the "
            "keys and values of the whole cache for each token."
        )


def note_instead(error: MoetoolError) -> str:
    """Return why a model was counted by its headers alone."""
    return f"Counted by the headers only: {error.message[0].lower()}{error.message[1:]}"


def note_others(groups: Sequence[OtherTensors]) -> Iterator[str]:
    """Yield the tensors in the files that are not counted, by reason."""
    for group in groups:
        yield (
            f"Not counted: {group.num_tensors:,} tensors of {group.reason} "
            f"({group.num_params:,} elements, such as {group.example})."
        )


def note_sources(
    sources: ExpertSources | None, num_experts: int | tuple[int | None, ...] | None
) -> Iterator[str]:
    """Yield a contradiction between the models that mergekit lists and the experts of a layer."""
    listed = len(sources.experts) if sources else 0
    if listed and isinstance(num_experts, int) and num_experts != listed:
        yield (
            f"mergekit_moe_config.yml lists {listed} models as experts, and a layer has {num_experts} "
            "experts: the file may be another checkpoint's."
        )


def note_towers(table: ParameterTable) -> Iterator[str]:
    """Yield the parameters that count toward the total and that no text token runs."""
    for component in (Component.VISION, Component.AUDIO):
        number = table.count_components()[component]
        if number:
            yield (
                f"The {component.value} tower ({number / 1e9:.2f} B) counts toward total, not active, "
                "parameters."
            )


def note_config(
    config: Mapping[str, object],
    *,
    quantization: str | None,
    has_dtype: bool,
    has_headers: bool,
) -> Iterator[str]:
    """Yield the notes on what the configuration states, or does not state, about the weights."""
    if find_num_mtp_layers(config) and not has_headers:
        yield (
            "The published files also have layers that predict further tokens (MTP), which "
            "transformers does not build."
        )
    if quantization:
        files = "The files are" if has_headers else "The published files are"
        yield (f"{files} quantized ({quantization}){f': {_DEQUANTIZED}' if has_dtype else '.'}")
    if not has_dtype:
        yield "Bytes unknown: config.json states no dtype."
