"""Which experts does each domain use more than the prompts as a whole do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.trace.counts import ExpertCounts, LayerCounts

# One imaginary assignment at the average rate keeps experts that were hardly ever chosen from
# topping every list.
PSEUDOCOUNT = 1.0


@dataclass(frozen=True)
class DomainExpert:
    """How one domain uses one expert.

    Attributes:
        domain: The domain.
        stack: As in the trace's column.
        layer: As in the trace's column.
        expert: As in the trace's column.
        assignments: Times chosen for a token of the domain.
        tokens: Decisions the layer made for tokens of the domain.
        share: `assignments / tokens`; a layer's shares sum to top-k (OLMoE, arXiv 2409.02060, 5.3).
        even_share: `top_k / num_experts`, what an even router gives.
        lift: Share over the expert's share among all tokens, shrunk towards 1 by one imaginary
            assignment: `(assignments + 1) / (expected + 1)`.
    """

    domain: str
    stack: str
    layer: int
    expert: int
    assignments: int
    tokens: int
    share: float
    even_share: float
    lift: float


def measure_lift(counts: ExpertCounts) -> list[DomainExpert]:
    """Return every (domain, layer, expert), in the order of layers, domains and experts."""
    domains = list(dict.fromkeys(counts.domains))
    cells = []
    for layer in counts.layers:
        assignments, decisions = sum_by_domain(layer, counts.domains, domains)
        lift = _lift(assignments, decisions)
        for row, domain in enumerate(domains):
            tokens = int(decisions[row])
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
                        share=chosen / tokens if tokens else 0.0,
                        even_share=layer.top_k / layer.num_experts,
                        lift=float(lift[row, expert]),
                    )
                )
    return cells


def find_most_lifted(cells: Sequence[DomainExpert], *, limit: int) -> dict[str, list[DomainExpert]]:
    """Return each domain's most over-represented experts over all layers, largest lift first."""
    ranked: dict[str, list[DomainExpert]] = {}
    for cell in sorted(cells, key=lambda cell: -cell.lift):
        ranked.setdefault(cell.domain, []).append(cell)
    return {domain: ranked[domain][:limit] for domain in sorted(ranked)}


def sum_by_domain(
    layer: LayerCounts, domain_of_group: Sequence[str], domains: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a layer's `(num_domains, num_experts)` assignments and `(num_domains,)` decisions."""
    index = np.array([domains.index(domain) for domain in domain_of_group])
    assignments = np.zeros((len(domains), layer.num_experts), dtype=np.int64)
    decisions = np.zeros(len(domains), dtype=np.int64)
    np.add.at(assignments, index, layer.assignments)
    np.add.at(decisions, index, layer.decisions)
    return assignments, decisions


def _lift(assignments: NDArray[np.int64], decisions: NDArray[np.int64]) -> NDArray[np.float64]:
    overall = assignments.sum(axis=0) / max(1, decisions.sum())  # (num_experts,)
    expected = decisions[:, None] * overall  # (num_domains, num_experts)
    lift: NDArray[np.float64] = (assignments + PSEUDOCOUNT) / (expected + PSEUDOCOUNT)
    return lift
