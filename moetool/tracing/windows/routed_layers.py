"""The recorded layers as a trace's metadata describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.trace.metadata import NOT_EXACT, RoutedLayer, TraceMetadata
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.tracing.recording.recorder import RoutingRecorder


def describe_layers(
    recorder: RoutingRecorder,
    widths: Mapping[MoeLayer, tuple[int, int]],
    known: Iterable[RoutedLayer] = (),
) -> tuple[RoutedLayer, ...]:
    """Return the layers that routed, in the model's order.

    Args:
        recorder: After at least one call of each layer in `widths` that isn't known.
        widths: As `RowMaker` has them.
        known: Layers that an earlier process described.
    """
    described = {(layer.stack, layer.layer): layer for layer in known}
    return tuple(_describe_layers(recorder, widths, described))


def _describe_layers(
    recorder: RoutingRecorder,
    widths: Mapping[MoeLayer, tuple[int, int]],
    described: Mapping[tuple[str, int], RoutedLayer],
) -> Iterator[RoutedLayer]:
    for layer in recorder.layers:
        before = described.get((layer.stack, layer.layer))
        if layer not in widths:
            if before is not None:
                yield before
            continue
        fewest, most = widths[layer]
        now = RoutedLayer(
            stack=layer.stack,
            layer=layer.layer,
            module=layer.experts_path,
            router=recorder.find_router(layer),
            rule=layer.rule.value,
            num_experts=layer.num_experts,
            num_identity_experts=layer.num_identity_experts,
            top_k=most,
            output_factor=recorder.find_output_factor(layer),
            routing=recorder.find_routing(layer),
            min_rows=fewest if fewest < most else None,
        )
        yield now if before is None else before.join(now)


def note_routing(
    metadata: TraceMetadata, layers: Sequence[RoutedLayer], *, weigh_input: int = 0
) -> TraceMetadata:
    """Return the metadata with its layers and with further notes for readers of the rows.

    Args:
        metadata: Without them.
        layers: The layers that routed.
        weigh_input: How many of them multiply what experts receive by the weights.
    """
    rules = {RoutingRule(layer.rule) for layer in layers if layer.rule}
    reasons = [rule.inexact_because for rule in rules if rule.inexact_because]
    return replace(
        metadata,
        layers=tuple(layers),
        exact=not reasons,
        notes=(
            *(f"{NOT_EXACT} {reason}." for reason in reasons),
            *_note_weights(layers, rules, weigh_input=weigh_input),
            *metadata.notes,
        ),
    )


def _note_weights(
    layers: Sequence[RoutedLayer], rules: Collection[RoutingRule], *, weigh_input: int
) -> Iterator[str]:
    if weigh_input:
        where = "" if weigh_input == len(layers) else f" in {number_of(weigh_input, 'layer')}"
        yield f"The weights{where} scale the experts' inputs, not their outputs."
    if RoutingRule.SEPARATE_EXPERTS in rules and weigh_input < len(layers):
        yield "The weights are those by which the blocks add up their experts' outputs."
    factors = Counter(layer.output_factor for layer in layers)
    for factor, num_layers in factors.items():
        if factor is None:
            yield (
                f"In {number_of(num_layers, 'layer')} the block does more than add the sum of its experts; the "
                "weights are those that the experts received."
            )
        elif factor != 1:
            yield (
                f"In {number_of(num_layers, 'layer')} the block multiplies the sum of its experts by "
                f"{factor:g}; the weights do not include this factor."
            )
