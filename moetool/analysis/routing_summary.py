"""Summarize a trace: how evenly experts share the work, and which of them each domain prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from moetool.analysis.balance.load import LayerLoad, measure_load
from moetool.analysis.specialization.lift import DomainExpert, find_most_lifted, measure_lift
from moetool.plain import make_plain
from moetool.trace.reading.counts import ExpertCounts
from moetool.wording import number_of


@dataclass(frozen=True)
class RoutingSummary:
    """The extremes of a trace's layers, and its domains.

    Attributes:
        least_even: The layer of the lowest load entropy; None where no expert ran in any layer.
        most_even: The layer of the highest.
        num_idle_experts: Experts that were never chosen, over all layers.
        domain_tokens: Tokens of each domain in the first routed layer.
        most_lifted: The over-represented experts of each domain, the surest first.
        layers: The load of every layer.
    """

    least_even: LayerLoad | None
    most_even: LayerLoad | None
    num_idle_experts: int
    domain_tokens: Mapping[str, int]
    most_lifted: Mapping[str, Sequence[DomainExpert]]
    layers: tuple[LayerLoad, ...] = ()

    def __repr__(self) -> str:
        words = [number_of(self.num_idle_experts, "idle expert")]
        words.append(number_of(len(self.domain_tokens), "domain"))
        if self.least_even is not None and self.most_even is not None:
            least, most = self.least_even, self.most_even
            words.insert(0, f"load evenness {least.entropy:.3f} to {most.entropy:.3f}")
        return f"<RoutingSummary: {', '.join(words)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        plain: dict[str, Any] = make_plain(self)
        return plain


def summarize_routing(counts: ExpertCounts) -> RoutingSummary:
    """Return the summary of a trace's counts."""
    loads = measure_load(counts)
    known = [(load.entropy, load) for load in loads if load.entropy is not None]
    lifts = measure_lift(counts)
    return RoutingSummary(
        least_even=min(known, key=itemgetter(0))[1] if known else None,
        most_even=max(known, key=itemgetter(0))[1] if known else None,
        num_idle_experts=sum(load.num_idle_experts for load in loads),
        domain_tokens={cell.domain: cell.tokens for cell in reversed(lifts)},
        most_lifted=find_most_lifted(lifts),
        layers=tuple(loads),
    )
