"""Placement by co-activation: its statistics against plain Python, and its swaps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.coactivation import place_by_coactivation, rate_pairs
from moetool.analysis.placement.methods.layer_statistics import (
    LayerStatistics,
    StatisticsCounter,
)
from moetool.analysis.placement.methods.swaps import improve_by_swaps
from moetool.trace.decisions import NO_EXPERT
from tests.analysis.placement import reference, reference_swaps


def draw_decisions(
    num_tokens: int, *, num_experts: int = 8, top_k: int = 3, seed: int = 0
) -> NDArray[np.int64]:
    """Return decisions of a router with popular experts and changing topics."""
    rng = np.random.default_rng(seed)
    topic = rng.normal(size=(num_tokens // 5 + 1, num_experts)).repeat(5, axis=0)[:num_tokens]
    scores = topic + rng.normal(size=num_experts) + rng.gumbel(size=(num_tokens, num_experts))
    return np.argsort(-scores, axis=1)[:, :top_k]


def count(
    decisions: NDArray[np.int64], *, num_experts: int = 8, tokens_per_batch: int = 4
) -> LayerStatistics:
    counter = StatisticsCounter(num_experts, tokens_per_batch)
    counter.add(decisions)
    return counter.statistics


@given(
    seed=st.integers(0, 2**16),
    num_tokens=st.integers(8, 40),
    tokens_per_batch=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_statistics(seed: int, num_tokens: int, tokens_per_batch: int, cuts: list[int]) -> None:
    decisions = draw_decisions(num_tokens, seed=seed)
    counter = StatisticsCounter(8, tokens_per_batch)
    for part in np.split(decisions, sorted(cuts)):
        counter.add(part)
    found = counter.statistics
    plain = [decision.tolist() for decision in decisions]
    assert found.pairs.tolist() == reference.count_pairs(plain, 8)
    assert found.load.tolist() == [
        sum(decision.count(expert) for decision in plain) for expert in range(8)
    ]
    assert found.num_batches == num_tokens // tokens_per_batch
    assert found.covariance is not None
    expected = reference.count_covariance(plain, 8, tokens_per_batch=tokens_per_batch)
    assert found.covariance == pytest.approx(np.array(expected), abs=1e-9)


@given(seed=st.integers(0, 2**16))
def test_statistics_of_two_halves_add_up(seed: int) -> None:
    decisions = draw_decisions(24, seed=seed)
    whole, first, second = (count(part) for part in (decisions, decisions[:12], decisions[12:]))
    both = first + second
    assert both.pairs.tolist() == whole.pairs.tolist()
    assert both.load.tolist() == whole.load.tolist()
    assert both.covariance == pytest.approx(whole.covariance)


def test_padding_and_identity_experts_are_not_counted() -> None:
    decisions = np.array([[0, 1, NO_EXPERT], [1, 2, 3], [3, 3, 0]])
    found = count(decisions, num_experts=3, tokens_per_batch=1)
    assert found.load.tolist() == [2, 2, 1]
    assert found.pairs.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert found.num_decisions == 3


def test_pairs_are_rated_by_joint_choices_minus_common_swings() -> None:
    found = count(draw_decisions(40))
    pairs, covariance = found.pairs, found.covariance
    assert covariance is not None
    expected = pairs / pairs.sum() - 0.25 * covariance / covariance.trace()
    assert rate_pairs(found, balance_weight=0.25) == pytest.approx(expected)


def test_without_batches_joint_choices_count_alone() -> None:
    found = count(draw_decisions(7))
    assert found.covariance is None
    assert rate_pairs(found, balance_weight=9.0) == pytest.approx(found.pairs / found.pairs.sum())


def sum_within(affinity: NDArray[np.float64], part: Sequence[int]) -> float:
    """Return the sum of affinities of the pairs within parts."""
    pairs = itertools.combinations(range(len(part)), 2)
    return sum(float(affinity[i, j]) for i, j in pairs if part[i] == part[j])


def draw_affinity(size: int, seed: int) -> NDArray[np.float64]:
    upper = np.triu(np.random.default_rng(seed).normal(size=(size, size)), 1)
    return (upper + upper.T) / size**2


@settings(max_examples=40)
@given(
    num_parts=st.integers(2, 4),
    size=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    slack=st.floats(0.5, 3),
)
def test_no_allowed_swap_is_better_at_the_end(
    num_parts: int, size: int, seed: int, slack: float
) -> None:
    number = num_parts * size
    affinity = draw_affinity(number, seed)
    load = np.random.default_rng(seed).random(number)
    start = np.arange(number) % num_parts
    mean = float(load.sum()) / num_parts * slack
    end = improve_by_swaps(affinity, load, start, mean_load=mean)
    assert sorted(end.tolist()) == sorted(start.tolist())
    assert sum_within(affinity, end.tolist()) >= sum_within(affinity, start.tolist()) - 1e-12
    totals = np.bincount(end, weights=load)
    most = np.maximum(1.05 * mean, np.bincount(start, weights=load).max())
    assert (totals <= most + 1e-9).all()
    for first, second in itertools.combinations(range(number), 2):
        here, there = end[first], end[second]
        swapped = end.copy()
        swapped[first], swapped[second] = there, here
        after = np.bincount(swapped, weights=load)
        limit = np.maximum(1.05 * mean, totals)
        if here != there and after[here] <= limit[here] and after[there] <= limit[there]:
            gain = sum_within(affinity, swapped.tolist()) - sum_within(affinity, end.tolist())
            assert gain <= 1e-8


def sort_nodes(gpus: list[list[int]], cluster: Cluster) -> list[list[list[int]]]:
    """Return the experts of each GPU of each node; nodes and their GPUs are interchangeable.

    Where parts hold two items, exchanging the first or the second ones gives the same parts.
    """
    size = cluster.num_gpus // cluster.num_nodes
    return sorted(sorted(gpus[start : start + size]) for start in range(0, len(gpus), size))


@pytest.mark.parametrize(
    ("gap", "swaps"), [(0.05, True), (0.2, False)], ids=["within the slack", "beyond it"]
)
def test_a_swap_may_not_overload_a_part(gap: float, swaps: bool) -> None:
    """Items 1 and 3 belong together, but they are the heavy ones of two even parts."""
    load = np.array([1, 1 + gap, 1, 1 + gap])
    affinity = np.zeros((4, 4))
    affinity[1, 3] = affinity[3, 1] = 1
    end = improve_by_swaps(affinity, load, np.array([0, 0, 1, 1]), mean_load=2 + gap)
    assert (end[1] == end[3]) == swaps


@settings(max_examples=30)
@given(
    cluster=st.sampled_from(
        [
            Cluster(4),
            Cluster(4, 2),
            Cluster(4, num_redundant_experts=4),
            Cluster(4, 2, 4, 4),
            Cluster(3, 3, 4),
            Cluster(2, num_redundant_experts=2),
        ]
    ),
    seed=st.integers(0, 2**16),
)
def test_swaps_are_those_of_a_plain_search(cluster: Cluster, seed: int) -> None:
    """Joint choices are drawn without ties, so that there is one best swap at a time."""
    rng = np.random.default_rng(seed)
    pairs = draw_affinity(8, seed) ** 2
    found = count(draw_decisions(60, seed=seed))
    statistics = replace(found, pairs=pairs, load=np.sort(rng.pareto(1.5, size=8) + 1))  # type: ignore[arg-type]
    rating = rate_pairs(statistics, balance_weight=0.08)
    expected = reference_swaps.place_by_coactivation(
        statistics.load.tolist(),
        rating.tolist(),
        num_slots=cluster.count_slots(8),
        num_groups=cluster.num_groups,
        num_nodes=cluster.num_nodes,
        num_gpus=cluster.num_gpus,
    )
    gpus = place_by_coactivation(statistics, cluster).reshape(cluster.num_gpus, -1).tolist()
    assert sort_nodes(gpus, cluster) == sort_nodes(expected, cluster)


@given(seed=st.integers(0, 2**16))
def test_partners_come_together(seed: int) -> None:
    """Experts that are always chosen in fixed pairs end on one GPU; that is the only optimum."""
    rng = np.random.default_rng(seed)
    partner = rng.permutation(16).reshape(8, 2)
    decisions = partner[rng.permutation(np.arange(400) % 8)]
    statistics = count(decisions, num_experts=16, tokens_per_batch=40)
    slots = place_by_coactivation(statistics, Cluster(8))
    assert sorted(sorted(gpu) for gpu in slots.reshape(8, 2).tolist()) == sorted(
        sorted(pair) for pair in partner.tolist()
    )


@pytest.mark.parametrize(
    "cluster",
    [
        Cluster(4),
        Cluster(4, 2),
        Cluster(4, 2, 8, 4),
        Cluster(8, 2, 8),
        Cluster(4, 4, 4, 2),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_every_expert_has_a_slot(cluster: Cluster, seed: int) -> None:
    decisions = draw_decisions(300, num_experts=16, top_k=4, seed=seed)
    slots = place_by_coactivation(count(decisions, num_experts=16, tokens_per_batch=20), cluster)
    assert len(slots) == 16 + cluster.num_redundant_experts
    assert set(slots.tolist()) == set(range(16))


@pytest.mark.parametrize("seed", range(3))
def test_replicas_of_an_expert_are_on_different_gpus(seed: int) -> None:
    decisions = draw_decisions(300, num_experts=16, top_k=4, seed=seed)
    statistics = count(decisions, num_experts=16, tokens_per_batch=20)
    slots = place_by_coactivation(statistics, Cluster(4, num_redundant_experts=8))
    for gpu in slots.reshape(4, -1).tolist():
        assert len(set(gpu)) == len(gpu)


def test_the_same_statistics_give_the_same_slots() -> None:
    statistics = count(draw_decisions(300, num_experts=16, top_k=4), num_experts=16)
    first, second = (place_by_coactivation(statistics, Cluster(4, 2)) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_a_router_that_always_takes_all_experts_leaves_nothing_to_gain() -> None:
    decisions = np.tile(np.arange(8), (40, 1))
    statistics = count(decisions)
    assert set(rate_pairs(statistics, balance_weight=0.08)[~np.eye(8, dtype=bool)]) == {1 / 56}
    assert set(place_by_coactivation(statistics, Cluster(4)).tolist()) == set(range(8))
