"""Lift: how much more each domain uses an expert than the prompts as a whole do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.lift_interval import find_interval
from moetool.trace.reading.counts import ExpertCounts, LayerCounts, PromptSums
from moetool.trace.reading.prompt_sums import sum_prompts


@dataclass(frozen=True)
class DomainExpert:
    """The use of one expert by one domain.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        expert: As in the trace's column.
        assignments: Times that a token of the domain chose the expert.
        tokens: Decisions of the layer for tokens of the domain.
        share: `assignments / tokens`; a layer's shares sum to top-k (OLMoE, arXiv 2409.02060,
            5.3). None in a domain without tokens.
        even_share: The share under even routing of as many assignments: `top_k / num_experts`, or
            less if tokens run fewer experts.
        lift: Share over the expert's share among the tokens of all domains. None where either is
            unknown, or the expert was never chosen.
        lift_low: Lower limit of the 95 % interval of lift over samples of prompts; see
            `lift_interval`. None where a single prompt of the domain chose the expert.
        lift_high: Upper limit. None also where the domain never chose the expert.
    """

    domain: str
    stack: str
    layer: int
    expert: int
    assignments: int
    tokens: int
    share: float | None
    even_share: float
    lift: float | None
    lift_low: float | None
    lift_high: float | None


Cell = TypeVar("Cell", bound=DomainExpert)


def measure_lift(counts: ExpertCounts) -> list[DomainExpert]:
    """Return every (domain, layer, expert), in the order of layers, domains and experts."""
    domains = list(dict.fromkeys(counts.domains))
    cells = []
    for layer in counts.layers:
        assignments, decisions = sum_by_domain(layer, counts.domains, domains)
        lift, low, high = find_interval(assignments, decisions, _sum_prompts(layer, counts))
        for row, domain in enumerate(domains):
            tokens = int(decisions[row])
            even_share = layer.top_k / layer.num_experts
            if tokens:
                even_share = int(assignments[row].sum()) / tokens / layer.num_experts
            for expert in range(layer.num_experts):
                chosen = int(assignments[row, expert])
                cells.append(
                    DomainExpert(
                        domain=domain,
                        stack=layer.stack,
                        layer=layer.layer,
                        expert=expert,
                        assignments=chosen,
                        tokens=tokens,
                        share=chosen / tokens if tokens else None,
                        even_share=even_share,
                        lift=_known(lift[row, expert]),
                        lift_low=_known(low[row, expert]),
                        lift_high=_known(high[row, expert]),
                    )
                )
    return cells


def find_most_lifted(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return each domain's over-represented experts over all layers, the surest first.

    These are the experts whose lift is above 1 even at its lower limit, in the order of that limit:
    an expert that was rarely chosen may have any lift, but not a high lower limit.
    """
    ranked: dict[str, list[Cell]] = {cell.domain: [] for cell in cells}
    for cell in sorted(cells, key=lambda cell: -(cell.lift_low or 0)):
        if cell.lift_low is not None and cell.lift_low > 1:
            ranked[cell.domain].append(cell)
    return {domain: ranked[domain] for domain in sorted(ranked)}


def sum_by_domain(
    layer: LayerCounts, domain_of_group: Sequence[str], domains: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a layer's `(num_domains, num_experts)` assignments and `(num_domains,)` decisions."""
    index = _find_index(domain_of_group, domains)
    assignments = np.zeros((len(domains), layer.num_experts), dtype=np.int64)
    decisions = np.zeros(len(domains), dtype=np.int64)
    np.add.at(assignments, index, layer.assignments)
    np.add.at(decisions, index, layer.decisions)
    return assignments, decisions


def _sum_prompts(layer: LayerCounts, counts: ExpertCounts) -> PromptSums:
    """Return the sums over the prompts of each domain, in order of first occurrence."""
    if layer.prompt_sums is not None:
        return layer.prompt_sums
    domains = list(dict.fromkeys(counts.domains))
    group = _find_index(counts.domains, domains)
    return sum_prompts(layer.assignments, layer.decisions, group=group, num_groups=len(domains))


def _find_index(of: Sequence[str], domains: Sequence[str]) -> NDArray[np.intp]:
    number = {domain: index for index, domain in enumerate(domains)}
    return np.array([number[domain] for domain in of], dtype=np.intp)


def _known(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
