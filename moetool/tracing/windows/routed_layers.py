"""What the trace says about the layers it recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.trace.metadata import NOT_EXACT, RoutedLayer, TraceMetadata

if TYPE_CHECKING:
    from moetool.tracing.recording.recorder import RoutingRecorder


def describe_layers(
    recorder: RoutingRecorder, top_k: Mapping[MoeLayer, int]
) -> tuple[RoutedLayer, ...]:
    """Return the layers that routed, in the model's order, given how many experts each chose."""
    return tuple(
        RoutedLayer(
            stack=place.stack,
            layer=place.layer,
            module=place.experts_path,
            router=recorder.find_router(place),
            rule=place.rule.value,
            num_experts=place.num_experts,
            num_identity_experts=place.num_identity_experts,
            top_k=top_k[place],
            output_factor=recorder.find_output_factor(place),
        )
        for place in recorder.layers
        if place in top_k
    )


def note_routing(metadata: TraceMetadata, layers: Sequence[RoutedLayer]) -> TraceMetadata:
    """Return the metadata with its layers, and with notes that a reader of the rows should know."""
    rules = {RoutingRule(layer.rule) for layer in layers if layer.rule}
    reasons = [rule.inexact_because for rule in rules if rule.inexact_because]
    return replace(
        metadata,
        layers=tuple(layers),
        exact=not reasons,
        notes=(*(f"{NOT_EXACT} {reason}." for reason in reasons), *_note_weights(layers, rules)),
    )


def _note_weights(layers: Sequence[RoutedLayer], rules: Collection[RoutingRule]) -> Iterator[str]:
    if RoutingRule.SPARSE_SCORES in rules:
        yield "The weights scale what the experts receive, not what they return."
    if RoutingRule.SEPARATE_EXPERTS in rules:
        yield "The weights are those by which the blocks add up what their experts return."
    factors = Counter(layer.output_factor for layer in layers)
    for factor, num_layers in factors.items():
        if factor is None:
            yield (
                f"In {num_layers} layers the block does more with the sum of its experts than add "
                "it; the weights are those that the experts received."
            )
        elif factor != 1:
            yield (
                f"In {num_layers} layers the block multiplies the sum of its experts by "
                f"{factor:g}; the weights do not hold this factor."
            )
