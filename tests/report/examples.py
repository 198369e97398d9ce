"""Hand-made results for tests of reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moetool.analysis.placement.measure import PlacementOptions, measure_placement
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.result import Placement
from moetool.analysis.placement.summary import SentBytes
from moetool.analysis.specialization.measure import measure_specialization
from moetool.analysis.specialization.result import Specialization
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from tests.analysis.random_traces import Router, make_random_trace, open_rows

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


def make_placement(
    cluster: Cluster, *, tokens_per_batch: int = 20, hidden_size: int | None = 2048
) -> Placement:
    """Return a comparison of placements of 20 layers of a router with popular experts."""
    router = Router(num_experts=16, top_k=4, num_layers=20, popularity=range(17, 1, -1))
    source = open_rows(make_random_trace([40] * 12, router=router), router=router)
    sent = (
        SentBytes(hidden_size, 2)
        if hidden_size
        else SentBytes(None, None, "bytes are unknown: no hidden size")
    )
    options = PlacementOptions(tokens_per_batch=tokens_per_batch, sent=sent, advises_vllm=True)
    return measure_placement(source, cluster, options)
