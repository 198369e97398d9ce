"""Hand-made results for tests of reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetool.analysis.specialization.measure import measure_specialization
from moetool.analysis.specialization.result import Specialization
from moetool.trace.reading.counts import ExpertCounts, LayerCounts

TOP_K = 2


def make_counts(
    domains: Sequence[str],
    *,
    prompts_per_domain: int = 3,
    num_experts: int = 8,
    places: Sequence[tuple[str, int]] = (("decoder", 0), ("decoder", 1)),
    notes: Sequence[str] = (),
) -> ExpertCounts:
    """Return counts by prompt for a model whose experts lean towards domains."""
    rng = np.random.default_rng(0)
    domain_of_prompt = [domain for domain in domains for _ in range(prompts_per_domain)]
    layers = []
    for stack, layer in places:
        preference = rng.random((len(domains), num_experts)) ** 3 + 0.01
        assignments = np.array(
            [
                rng.multinomial(400, row / row.sum())
                for row in preference
                for _ in range(prompts_per_domain)
            ]
        )
        layers.append(
            LayerCounts(
                stack=stack,
                layer=layer,
                top_k=TOP_K,
                assignments=assignments,
                decisions=assignments.sum(axis=1) // TOP_K,
            )
        )
    return ExpertCounts(
        groups=tuple(f"p{number}" for number in range(len(domain_of_prompt))),
        domains=tuple(domain_of_prompt),
        layers=tuple(layers),
        notes=tuple(notes),
    )


def make_result(counts: ExpertCounts, *, num_permutations: int = 199) -> Specialization:
    return measure_specialization(counts, num_permutations=num_permutations)
