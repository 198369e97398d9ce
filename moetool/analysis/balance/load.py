"""Load: how evenly the experts of each layer share the work."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moetool.analysis.balance.evenness import measure_evenness
from moetool.trace.reading.counts import ExpertCounts


@dataclass(frozen=True)
class LayerLoad:
    """One layer's load over its experts.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        entropy: Normalised load entropy, 1 when even: `-sum(p ln p) / ln E` over the shares `p`
            of assignments. None where no expert ever ran, like the following fields except the
            last.
        random_entropy: Expected from a uniform random router on the same number of assignments
            `N`: `1 - (E - k) / (2 N ln E)`, where a decision runs k experts on average.
        max_over_mean: The busiest expert's load over the mean load.
        num_idle_experts: Experts that were never chosen.
        over_mean: Each expert's load over the mean load; None where no expert ever ran.
    """

    stack: str
    layer: int
    entropy: float | None
    random_entropy: float | None
    max_over_mean: float | None
    num_idle_experts: int
    over_mean: tuple[float, ...] | None = field(default=None, repr=False)


def measure_load(counts: ExpertCounts) -> list[LayerLoad]:
    """Return each layer's load over all groups."""
    loads = []
    for layer in counts.layers:
        per_expert = layer.assignments.sum(axis=0)  # (num_experts,)
        evenness = measure_evenness(per_expert)
        num_assignments, num_experts = int(per_expert.sum()), layer.num_experts
        mean_size = num_assignments / max(1, int(layer.decisions.sum()))
        # A single expert is evenly loaded by definition.
        log_experts = np.log(max(2, num_experts))
        loads.append(
            LayerLoad(
                stack=layer.stack,
                layer=layer.layer,
                entropy=evenness.entropy,
                random_entropy=float(
                    1 - (num_experts - mean_size) / (2 * num_assignments * log_experts)
                )
                if num_assignments
                else None,
                max_over_mean=None
                if evenness.max_violation is None
                else 1 + evenness.max_violation,
                num_idle_experts=int((per_expert == 0).sum()),
                over_mean=tuple((per_expert * (num_experts / num_assignments)).tolist())
                if num_assignments
                else None,
            )
        )
    return loads
