"""EPLB gives the published example, and agrees with a plain reading of its description."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moetool.analysis.placement.methods.cluster import Cluster, spread_evenly
from moetool.analysis.placement.methods.eplb import place_by_load
from moetool.errors import UsageError
from tests.analysis.placement import reference

# From the README of github.com/deepseek-ai/EPLB.
LOADS = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
PLACED = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)


def draw_load(num_experts: int, seed: int) -> np.ndarray:
    """Return loads without ties, as busy and as idle as those of a skewed router."""
    rng = np.random.default_rng(seed)
    return rng.permutation(num_experts) + rng.pareto(1.5, size=num_experts) * 100


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, Cluster]:
    """Return a number of experts, and a cluster that can share them evenly."""
    num_nodes, gpus_per_node = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    num_groups, group_size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    num_experts, num_gpus = num_groups * group_size, num_nodes * gpus_per_node
    redundant = -num_experts % num_gpus + num_gpus * draw(st.integers(0, 3))
    return num_experts, Cluster(num_gpus, num_nodes, redundant, num_groups)


@pytest.mark.parametrize(("load", "placed"), list(zip(LOADS, PLACED, strict=True)))
def test_published_example(load: tuple[int, ...], placed: tuple[int, ...]) -> None:
    cluster = Cluster(num_gpus=8, num_nodes=2, num_redundant_experts=4, num_groups=4)
    assert place_by_load(np.array(load, dtype=np.float64), cluster).tolist() == list(placed)


@given(shape=clusters(), seed=st.integers(0, 2**16))
def test_agrees_with_the_description(shape: tuple[int, Cluster], seed: int) -> None:
    num_experts, cluster = shape
    load = draw_load(num_experts, seed)
    expected = reference.place_by_load(
        load.tolist(),
        num_slots=num_experts + cluster.num_redundant_experts,
        num_groups=cluster.num_groups,
        num_nodes=cluster.num_nodes,
        num_gpus=cluster.num_gpus,
    )
    assert place_by_load(load, cluster).tolist() == expected


@given(shape=clusters(), seed=st.integers(0, 2**16))
def test_every_expert_has_a_slot(shape: tuple[int, Cluster], seed: int) -> None:
    num_experts, cluster = shape
    for slots in (
        place_by_load(draw_load(num_experts, seed), cluster),
        spread_evenly(num_experts, cluster),
    ):
        assert set(slots.tolist()) == set(range(num_experts))
        assert len(slots) == num_experts + cluster.num_redundant_experts


@given(shape=clusters(), seed=st.integers(0, 2**16))
def test_groups_stay_on_a_node(shape: tuple[int, Cluster], seed: int) -> None:
    num_experts, cluster = shape
    assume(cluster.num_groups % cluster.num_nodes == 0)
    slots = place_by_load(draw_load(num_experts, seed), cluster)
    nodes = {
        (expert * cluster.num_groups // num_experts, slot * cluster.num_nodes // len(slots))
        for slot, expert in enumerate(slots.tolist())
    }
    assert len(nodes) == cluster.num_groups


@given(seed=st.integers(0, 2**16), redundant=st.sampled_from([0, 8, 24]))
def test_renaming_experts_renames_the_slots(seed: int, redundant: int) -> None:
    load = draw_load(32, seed)
    cluster = Cluster(8, num_redundant_experts=redundant)
    order = np.random.default_rng(seed).permutation(32)
    mine = place_by_load(load[order], cluster).reshape(8, -1)
    others = place_by_load(load, cluster).reshape(8, -1)
    assert [Counter(order[gpu].tolist()) for gpu in mine] == [
        Counter(gpu.tolist()) for gpu in others
    ]


def test_equal_loads_are_taken_in_the_order_of_ids() -> None:
    assert place_by_load(np.ones(8), Cluster(4)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_contiguous_placement_repeats_the_first_experts() -> None:
    assert spread_evenly(6, Cluster(4, num_redundant_experts=2)).tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"num_gpus": 8, "num_nodes": 3}, "8 GPUs can't be shared out evenly to 3 nodes."),
        (
            {"num_gpus": 8, "num_redundant_experts": 3},
            "Layer 3 has 64 experts and 3 redundant ones: 67 slots can't be shared out evenly to "
            "8 GPUs.",
        ),
        (
            {"num_gpus": 8, "num_groups": 5},
            "Layer 3 has 64 experts, which can't be divided into 5 groups of equal size.",
        ),
    ],
)
def test_uneven_shares_are_refused(cluster: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        Cluster(**cluster).check_layer("layer 3", 64)
    assert refused.value.message == words


def test_the_hint_names_numbers_that_work() -> None:
    with pytest.raises(UsageError) as refused:
        Cluster(12, num_redundant_experts=3).check_layer("layer 0", 64)
    assert "--redundant 8 or 20" in refused.value.hint
    for redundant in (8, 20):
        Cluster(12, num_redundant_experts=redundant).check_layer("layer 0", 64)
