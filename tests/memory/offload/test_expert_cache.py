"""Single experts that stay on the GPU: their number, and what a trace says they are worth."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.memory.offload.expert_bytes import list_layer_experts
from moetool.memory.offload.expert_cache import plan_expert_cache
from moetool.memory.speed.experts_touched import find_choices
from tests.analysis.caching.plain_caches import count_hits, find_static_sets, list_steps
from tests.analysis.random_traces import Router, make_random_trace
from tests.memory.published_skeletons import build_published_skeleton
from tests.simulation.skeletons import build_family_skeleton

GIB = 2**30
MIXTRAL_EXPERT = 3 * 4096 * 14336 * 2


def test_the_experts_of_mixtral_on_24_gib_are_as_by_hand() -> None:
    mixtral = build_published_skeleton("mixtral-8x7b")
    choices = find_choices(RoutedSkeleton.of(mixtral))
    assert choices is not None
    # All experts are 84 GiB, one of each layer is 10.5, and a token needs two at a time.
    for gpu_gib, num_kept in ((17, 0), (17.2, 1), (24, 1), (28, 2), (90, 0)):
        cache = plan_expert_cache(
            RoutedSkeleton.of(mixtral),
            gpu_memory_bytes=int(gpu_gib * GIB),
            total_bytes=90 * GIB,
            choices=choices,
            routing="uniform",
            trace=None,
        )
        if not num_kept:
            assert cache is None
            continue
        assert cache is not None
        assert cache.experts_per_layer == num_kept
        assert cache.gpu_bytes == num_kept * 32 * MIXTRAL_EXPERT
        assert cache.uniform_hit_rate == num_kept / 8
        assert cache.uniform_transfer_bytes_per_token == 32 * 2 * (8 - num_kept) * (
            MIXTRAL_EXPERT // 8
        )
        assert (cache.static_hit_rate, cache.lru_hit_rate) == (None, None)


def test_hit_rates_are_those_of_the_trace(tmp_path: Path) -> None:
    skeleton = build_family_skeleton("mixtral")
    experts = list_layer_experts(RoutedSkeleton.of(skeleton))
    choices = find_choices(RoutedSkeleton.of(skeleton))
    assert choices is not None
    shape = experts[0].layer
    router = Router(
        num_experts=shape.num_experts,
        top_k=choices[shape],
        num_layers=len(experts),
        first_layer=shape.layer,
        popularity=tuple(range(1, shape.num_experts + 1)),
    )
    table = make_random_trace((9, 12, 7, 11), router=router, num_prompt_tokens=4)
    pq.write_table(table, tmp_path / "trace.parquet")
    all_bytes = sum(each.num_bytes for each in experts)
    size = experts[0].num_bytes // shape.num_experts
    cache = plan_expert_cache(
        RoutedSkeleton.of(skeleton),
        # Room for two experts of each layer, and for those at work.
        gpu_memory_bytes=2 * size * len(experts) + choices[shape] * size,
        total_bytes=all_bytes,
        choices=choices,
        routing="trace.parquet",
        trace=tmp_path / "trace.parquet",
    )
    assert cache is not None
    assert (cache.experts_per_layer, cache.routing) == (2, "trace.parquet")
    hits = {"static": 0, "lru": 0}
    requests = num_tokens = 0
    for each in experts:
        layer = each.layer.layer
        steps = list_steps(table, layer=layer)
        decoded = [step for step in steps if step.phase == "decode"]
        requests += sum(len(step.needed) for step in decoded)
        num_tokens = len(decoded)
        static = find_static_sets(table, layer=layer, capacity=2)
        for policy in hits:
            found = count_hits(steps, policy, capacity=2, static=static)
            hits[policy] += found["decode"]
    assert cache.static_hit_rate == pytest.approx(hits["static"] / requests)
    assert cache.lru_hit_rate == pytest.approx(hits["lru"] / requests)
    missed = requests - hits["lru"]
    assert cache.lru_transfer_bytes_per_token == round(missed * size / num_tokens)
