"""Measure how much of a decision's weight its first choice has."""

from __future__ import annotations

import numpy as np

from moetool.analysis.confidence.result import Confidence, EqualWeights, LayerConfidence
from moetool.analysis.confidence.spread import Spread
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import LayerChoices
from moetool.wording import number_of

COLUMNS = ("weight",)

# Sums of weights in half precision differ from 1 by as much.
_ROUNDING = 0.01


class _LayerMeter:
    def __init__(self) -> None:
        self.weight, self.share = Spread(), Spread()
        self.num_decisions = self.num_tokens = 0
        self.equal_weight = self.equal_share = 0.0
        self.is_normalized = True

    def add(self, choices: LayerChoices) -> None:
        assert choices.weights is not None
        self.num_tokens += len(choices.token)
        ran = choices.experts >= 0
        weights = np.where(ran, choices.weights, 0).astype(np.float32)
        total = weights.sum(axis=1, dtype=np.float64)
        counts = total > 0
        weights, total, number = weights[counts], total[counts], ran[counts].sum(axis=1)
        if not len(weights):
            return
        first = weights.max(axis=1)
        self.weight.add(first)
        self.share.add((first / total).astype(np.float32))
        self.num_decisions += len(first)
        self.equal_weight += float((total / number).sum())
        self.equal_share += float((1 / number).sum())
        self.is_normalized &= bool((np.abs(total - 1) <= _ROUNDING).all())

    def describe(self, layer: RoutedLayer) -> LayerConfidence:
        number = self.num_decisions
        return LayerConfidence(
            stack=layer.stack,
            layer=layer.layer,
            num_experts=layer.num_experts + layer.num_identity_experts,
            top_k=layer.top_k,
            num_tokens=self.num_tokens,
            num_decisions=number,
            weight=self.weight.describe(),
            share=self.share.describe(),
            baseline=EqualWeights(self.equal_weight / number, self.equal_share / number)
            if number
            else None,
            is_normalized=self.is_normalized if number else None,
        )


def measure_confidence(reader: DecisionReader) -> Confidence:
    """Return the distribution of the largest weight of decisions, layer by layer.

    Args:
        reader: The trace, with the column `weight`.

    Raises:
        InputError: The trace has no weights, or a row is not one of a trace.
    """
    if "weight" not in reader.columns:
        raise InputError(
            f"'{printable(reader.path)}' has no column 'weight'.",
            hint="Add the routing weights of its rows, or trace again with moetool route-trace.",
        )
    meters = {(layer.stack, layer.layer): _LayerMeter() for layer in reader.layers}
    for window in reader:
        for place, choices in window.layers.items():
            meters[place].add(choices)
    layers = tuple(meters[layer.stack, layer.layer].describe(layer) for layer in reader.layers)
    num_without = sum(layer.num_tokens - layer.num_decisions for layer in layers)
    notes = list(reader.notes)
    if num_without:
        notes.append(
            f"{number_of(num_without, 'decision')} without a positive weight "
            f"{'is' if num_without == 1 else 'are'} left out."
        )
    return Confidence(trace=reader.facts, layers=layers, notes=tuple(notes))
