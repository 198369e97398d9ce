"""The confidence of routers as a value: distributions over decisions, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of

# Of the decisions of a layer.
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Distribution:
    """The distribution of a figure over the decisions of a layer.

    A percentile is the smallest value that at least this share of decisions does not exceed,
    rounded down to 12 significant bits, so at most 0.05 % too low.

    Attributes:
        mean: Of the unrounded values.
    """

    mean: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclass(frozen=True)
class EqualWeights:
    """The figures of a router that gives all chosen experts the same weight.

    Attributes:
        weight: Mean over decisions of their weights' sum over the number of experts that ran.
        share: Mean over decisions of 1 over the number of experts that ran: `1 / top_k` where every
            decision runs top-k experts. No share can be smaller than 1 over that number.
    """

    weight: float
    share: float


@dataclass(frozen=True)
class LayerConfidence(LayerFacts):
    """The confidence of one layer's router; None where no decision has a positive weight.

    Attributes:
        num_decisions: Decisions whose weights have a positive sum.
        weight: The largest weight of a decision, as the experts' outputs are multiplied by it.
        share: That weight over the sum of the decision's weights, from `1 / top_k` to 1.
        baseline: Of equal weights.
        is_normalized: Whether the weights of every decision add up to 1, up to rounding, so that
            `weight` and `share` are the same.
    """

    num_decisions: int
    weight: Distribution | None
    share: Distribution | None
    baseline: EqualWeights | None
    is_normalized: bool | None


@dataclass(frozen=True)
class Confidence(Tabular):
    """The confidence of the routers of all layers.

    Attributes:
        trace: Facts about the trace.
        layers: In the order of stack and layer.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
    """

    trace: TraceFacts
    layers: tuple[LayerConfidence, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        known = [layer.share.p50 for layer in self.layers if layer.share is not None]
        spread = f", first choice {min(known):.0%} to {max(known):.0%} of the weight"
        layers = number_of(len(self.layers), "layer")
        return f"<Confidence{name}: {layers}{spread if known else ''}>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; unknown ones are None."""
        plain: dict[str, Any] = make_plain(self)
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {
            "stack": str,
            **dict.fromkeys(("layer", "num_experts", "top_k", "num_decisions"), int),
            "is_normalized": bool | None,
            **{
                f"{figure}_{name}": float | None
                for figure in ("weight", "share")
                for name in (*_OF_A_DISTRIBUTION, "if_equal")
            },
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer. Values are plain; unknown ones are None."""
        rows = []
        for layer in self.layers:
            values = {
                f"{figure}_{name}": getattr(getattr(layer, figure), name, None)
                for figure in ("weight", "share")
                for name in _OF_A_DISTRIBUTION
            }
            for figure in ("weight", "share"):
                values[f"{figure}_if_equal"] = getattr(layer.baseline, figure, None)
            rows.append(
                {
                    name: values[name] if name in values else getattr(layer, name)
                    for name in self.column_types()
                }
            )
        return rows


_OF_A_DISTRIBUTION = ("mean", *(f"p{percent}" for percent in PERCENTILES))
