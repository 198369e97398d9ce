"""Hand-made results for tests of reports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from moetool.analysis.placement.measure import PlacementOptions, measure_placement
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.result import Placement
from moetool.analysis.placement.summary import SentBytes
from moetool.analysis.specialization.by_token.measure import measure_token_specialization
from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.from_trace import SpecializationOptions, measure_trace
from moetool.analysis.specialization.measure import measure_specialization
from moetool.analysis.specialization.result import Specialization
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from moetool.trace.reading.reader import TraceSource
from tests.analysis.random_traces import Router, make_random_trace, open_rows

TOP_K = 2
_ROUTER = Router(num_layers=14, popularity=(4, 2, 1, 1, 1, 1, 1, 1))


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


@cache
def make_whole_result() -> Specialization:
    """Return the result of a trace, whose rare token ids lean towards experts by domain."""
    return measure_trace(_make_source(), SpecializationOptions(num_permutations=199))


@cache
def make_token_result() -> TokenSpecialization:
    return measure_token_specialization(_make_source(), SpecializationOptions())


def _make_source() -> TraceSource:
    table = make_random_trace((60,) * 24, router=_ROUTER, num_token_ids=40)
    domain = np.array(table.column("domain").to_pylist()) == "code"
    expert, token_id = (table.column(name).to_numpy() for name in ("expert", "token_id"))
    # Every second token id, in code: the experts of another number.
    moved = np.where(domain & (token_id % 2 == 0), (expert + token_id) % 8, expert)
    index = table.column_names.index("expert")
    table = table.set_column(index, "expert", pa.array(moved.astype(np.int16)))
    return open_rows(table, router=_ROUTER)


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
