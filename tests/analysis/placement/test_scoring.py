"""Scores of placements against plain Python, and those of random routers against simulation."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.eplb import place_by_load
from moetool.analysis.placement.random_router import (
    RouterShape,
    draw_loads,
    expect_reached,
    score_random_router,
)
from moetool.analysis.placement.scoring import LayerScorer, measure_imbalance, share_out
from moetool.analysis.statistics.decision_sizes import make_sizes
from moetool.trace.decisions import NO_EXPERT
from tests.analysis.placement import reference
from tests.analysis.placement.test_coactivation import draw_decisions
from tests.analysis.placement.test_eplb import draw_load

CLUSTERS = (Cluster(4), Cluster(4, 2), Cluster(4, 2, 4), Cluster(8, 2, 16), Cluster(8))


@settings(max_examples=30)
@given(
    cluster=st.sampled_from(CLUSTERS),
    seed=st.integers(0, 2**16),
    tokens_per_batch=st.integers(1, 9),
    cut=st.integers(0, 20),
)
def test_scores(cluster: Cluster, seed: int, tokens_per_batch: int, cut: int) -> None:
    decisions = draw_decisions(20, seed=seed)
    slots = place_by_load(draw_load(8, seed), cluster)
    scorer = LayerScorer(
        {"mine": slots}, num_experts=8, cluster=cluster, tokens_per_batch=tokens_per_batch
    )
    parts = [scorer.add(part)["mine"] for part in (decisions[:cut], decisions[cut:])]
    found = scorer.scores()["mine"]
    plain, places = [decision.tolist() for decision in decisions], slots.tolist()
    reached = [
        reference.count_reached(decision, places, num_parts=cluster.num_gpus) for decision in plain
    ]
    batches = reference.split_batches(plain, tokens_per_batch)
    imbalance = [
        reference.measure_imbalance(batch, places, num_parts=cluster.num_gpus) for batch in batches
    ]
    assert np.concatenate([part.reached for part in parts]) == pytest.approx(reached)
    assert np.concatenate([part.imbalance for part in parts]) == pytest.approx(imbalance)
    ends = [*parts[0].last, *(parts[1].last + cut)]
    assert ends == [(index + 1) * tokens_per_batch - 1 for index in range(len(batches))]
    assert found.fan_out == pytest.approx(sum(reached) / 20)
    assert found.batch_imbalance == pytest.approx(sum(imbalance) / len(batches))
    assert found.global_imbalance == pytest.approx(
        reference.measure_imbalance(plain, places, num_parts=cluster.num_gpus)
    )
    assert found.node_fan_out == pytest.approx(
        sum(
            reference.count_reached(decision, places, num_parts=cluster.num_nodes)
            for decision in plain
        )
        / 20
    )


@given(seed=st.integers(0, 2**16))
def test_renaming_experts_changes_no_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decisions, names = draw_decisions(30, seed=seed), rng.permutation(8)
    slots = rng.permutation(8)
    scores = []
    for one, placed in ((decisions, slots), (names[decisions], names[slots])):
        scorer = LayerScorer({"a": placed}, num_experts=8, cluster=Cluster(4), tokens_per_batch=5)
        scorer.add(one)
        scores.append(scorer.scores()["a"])
    assert vars(scores[0]) == pytest.approx(vars(scores[1]))


def test_more_parts_than_bits_of_a_word() -> None:
    decisions = draw_decisions(50, num_experts=200, top_k=6)
    cluster = Cluster(100, 10)
    slots = np.random.default_rng(0).permutation(200)
    scorer = LayerScorer({"a": slots}, num_experts=200, cluster=cluster, tokens_per_batch=10)
    reached = scorer.add(decisions)["a"].reached
    assert reached.tolist() == [
        reference.count_reached(decision, slots.tolist(), num_parts=100)
        for decision in decisions.tolist()
    ]


def test_padding_and_identity_experts_reach_no_gpu() -> None:
    scorer = LayerScorer({"a": np.arange(4)}, num_experts=4, cluster=Cluster(4), tokens_per_batch=3)
    scored = scorer.add(np.array([[0, NO_EXPERT], [4, 5], [1, 2]]))["a"]
    assert scored.reached.tolist() == [1, 0, 2]
    assert scored.imbalance.tolist() == [4 / 3]


def test_nothing_scored_is_unknown() -> None:
    scorer = LayerScorer({"a": np.arange(4)}, num_experts=4, cluster=Cluster(2), tokens_per_batch=3)
    assert set(vars(scorer.scores()["a"]).values()) == {None}


def make_shape(num_experts: int, num_others: int, *sizes: int) -> RouterShape:
    """Return a router of which as many decisions run each number of experts."""
    ran = Counter(size for size in sizes if size)
    return RouterShape(num_experts, num_others, make_sizes(ran), len(sizes))


def test_a_router_that_takes_all_experts_is_even_everywhere() -> None:
    shape = make_shape(8, 0, 8)
    decisions = np.tile(np.arange(8), (10, 1))
    cluster = Cluster(4, 2)
    scorer = LayerScorer({"a": np.arange(8)}, num_experts=8, cluster=cluster, tokens_per_batch=5)
    scorer.add(decisions)
    found = scorer.scores()["a"]
    random = score_random_router(
        shape,
        share_out(np.arange(8), num_experts=8, num_parts=4),
        share_out(np.arange(8), num_experts=8, num_parts=2),
        tokens_per_batch=5,
        num_tokens=10,
    )
    assert (found.batch_imbalance, found.global_imbalance) == (1, 1)
    assert (found.fan_out, found.node_fan_out) == (4, 2)
    assert vars(random) == pytest.approx(vars(found))


@pytest.mark.parametrize(
    ("shape", "cluster"),
    [
        (make_shape(16, 0, 4), Cluster(4)),
        (make_shape(16, 0, 4), Cluster(8, num_redundant_experts=8)),
        (make_shape(16, 8, 3), Cluster(8)),
        (make_shape(16, 0, 1), Cluster(2)),
        # Choices that ran no expert, and decisions in which none ran.
        (make_shape(8, 0, 1, 1, 1, 2, 2), Cluster(4)),
        (make_shape(16, 8, 0, 2, 5), Cluster(8, num_redundant_experts=8)),
    ],
)
def test_random_router_lands_on_the_baseline(shape: RouterShape, cluster: Cluster) -> None:
    """A simulated router agrees within four standard errors of both means."""
    rng = np.random.default_rng(1)
    num_batches, size = 150, 64
    ran = [number for number, times in shape.sizes for _ in range(times)]
    ran += [0] * (shape.num_decisions - len(ran))
    drawn_sizes = rng.choice(ran, num_batches * size)
    keys = rng.random((num_batches * size, shape.num_ids))
    decisions = np.argsort(keys, axis=1)[:, : max(ran)]
    decisions[np.arange(max(ran)) >= drawn_sizes[:, None]] = NO_EXPERT
    slots = place_by_load(draw_load(shape.num_experts, 3), cluster)
    scorer = LayerScorer(
        {"a": slots}, num_experts=shape.num_experts, cluster=cluster, tokens_per_batch=size
    )
    scored = scorer.add(decisions)["a"]
    found = scorer.scores()["a"]
    assert scorer.sizes == make_sizes(dict(sorted(Counter(drawn_sizes.tolist()).items())))
    gpus, nodes = (
        share_out(slots, num_experts=shape.num_experts, num_parts=parts)
        for parts in (cluster.num_gpus, cluster.num_nodes)
    )
    expected = score_random_router(shape, gpus, nodes, tokens_per_batch=size, num_tokens=10**6)
    assert expected.fan_out is not None
    assert expected.batch_imbalance is not None
    error = scored.reached.std() / len(decisions) ** 0.5
    assert abs(found.fan_out - expected.fan_out) <= 4 * error + 1e-9  # type: ignore[operator]
    drawn = measure_imbalance(draw_loads(shape, num_tokens=size) @ gpus)
    error = (drawn.var() / len(drawn) + scored.imbalance.var() / num_batches) ** 0.5
    assert abs(found.batch_imbalance - expected.batch_imbalance) <= 4 * error  # type: ignore[operator]


@given(seed=st.integers(0, 2**16), top_k=st.integers(1, 4))
def test_fan_out_of_all_choices(seed: int, top_k: int) -> None:
    """The expected fan-out is the mean over every choice of experts, listed one by one."""
    cluster = Cluster(3, num_redundant_experts=3)
    slots = place_by_load(draw_load(6, seed), cluster)
    every = list(itertools.combinations(range(7), top_k))
    reached = [
        reference.count_reached(
            [expert for expert in choice if expert < 6], slots.tolist(), num_parts=3
        )
        for choice in every
    ]
    share = share_out(slots, num_experts=6, num_parts=3)
    shape = make_shape(6, 1, top_k)
    assert expect_reached(shape, share) == pytest.approx(sum(reached) / len(every))
