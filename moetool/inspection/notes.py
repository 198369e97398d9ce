"""What a reader of a model's figures should know: what can't be said in one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from moetool.anatomy.components import Component
from moetool.anatomy.config_fields import find_num_mtp_layers
from moetool.anatomy.parameters import ActiveDefinition, ParameterTable

if TYPE_CHECKING:
    from moetool.anatomy.routing.moe_layers import FoundExperts
    from moetool.anatomy.skeleton.description import Anatomy
    from moetool.inspection.result import Flops

_DEQUANTIZED = (
    "dtype and bytes are those of the weights once dequantized; `moetool memory-estimate` shows what "
    "they take as loaded."
)


def note_routing(experts: FoundExperts, anatomy: Anatomy, table: ParameterTable) -> Iterator[str]:
    """Yield what is to be said of a model's routing and of its active parameters."""
    from moetool.anatomy.routing.routing_signs import describe_signs

    rules = {layer.rule for layer in experts.layers}
    if experts.is_dense:
        yield "A dense model: a text token runs all of it, except its towers."
    for seen in describe_signs(experts.signs):
        others = "other " if experts.layers or experts.unreadable else ""
        yield (
            f"No {others}routed experts were recognised, but parts of the model may be experts, so "
            f"active parameters are unknown: {seen}."
        )
    if experts.unreadable:
        yield (
            f"The routing of {experts.unreadable[0]} can't be read, so active parameters are unknown."
        )
    if any(layer.top_k is None for layer in anatomy.routed_layers):
        yield "Nothing tells how many experts a token runs, so active parameters are unknown."
    identity = {layer.num_identity_experts for layer in anatomy.routed_layers} - {0}
    active = table.count_active(ActiveDefinition.ALL)
    if identity:
        yield (
            f"{max(identity)} experts of a layer return their input unchanged and have no parameters:"
            " how many of the others a token runs differs from token to token."
        )
    elif active is not None and active.exact is None:
        yield (
            "Two stacks share their experts, and may choose the same ones or others: how many "
            "parameters a token of each runs differs."
        )
    if any(rule.runs_all_experts for rule in rules):
        yield (
            "transformers runs all experts on every token, those not chosen on zeros; active counts "
            "the chosen ones, FLOPs count what is run."
        )
    for rule in rules:
        if rule.inexact_because:
            yield f"Active counts what the router chooses; {rule.inexact_because}."
    capacity = {layer.style.capacity for layer in anatomy.routed_layers if layer.style} - {None}
    if capacity:
        yield (
            f"An expert takes at most {capacity.pop()} tokens of a sequence; tokens beyond that run "
            "none. Active counts those that run one."
        )
    if anatomy.is_encoder_decoder:
        yield "Two stacks: active counts one token of each."
    if any(layer.style and layer.style.scores is None for layer in anatomy.routed_layers):
        yield "What some routers make of their scores can't be known from what they return."


def note_flops(anatomy: Anatomy, flops: Flops | None) -> Iterator[str]:
    """Yield why the FLOPs of a token that is written are so many more than those of one that is read."""
    if flops is None or flops.decode is None or not flops.num_prompt_tokens:
        return
    is_latent = any(mixer.kind == "latent attention" for mixer in anatomy.mixers)
    if is_latent and flops.decode > 2 * flops.prefill:
        yield (
            "transformers expands keys and values of the whole cache from their latents for every "
            "token that is written: that is what most of its FLOPs are."
        )


def note_towers(table: ParameterTable) -> Iterator[str]:
    """Yield what is in the total and never run by text."""
    for component in (Component.VISION, Component.AUDIO):
        number = table.count_components()[component]
        if number:
            yield (
                f"The {component.value} tower ({number / 1e9:.2f} B) is in the total, not in active."
            )


def note_config(
    config: Mapping[str, object],
    *,
    quantization: str | None,
    has_dtype: bool,
    has_headers: bool,
) -> Iterator[str]:
    """Yield what the configuration says, or leaves unsaid, of parameters and their bytes."""
    if find_num_mtp_layers(config) and not has_headers:
        yield (
            "The published files also hold layers that predict further tokens (MTP); transformers "
            "does not build them."
        )
    if quantization:
        files = "The files are" if has_headers else "The published files are"
        yield (f"{files} quantized ({quantization}){f': {_DEQUANTIZED}' if has_dtype else '.'}")
    if not has_dtype:
        yield "config.json states no dtype, so bytes are unknown."
