"""Load and its random baseline, against values worked out by hand and by simulation."""

from __future__ import annotations

from math import log
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from moetool.analysis.balance.load import LayerLoad, measure_load
from moetool.trace.reading.counts import ExpertCounts, LayerCounts


def load_of(assignments: ArrayLike, *, top_k: int = 1) -> LayerLoad:
    """Return the load of a layer, given its assignments by group and expert."""
    rows = np.atleast_2d(np.array(assignments, dtype=np.int64))
    layer = LayerCounts(
        stack="decoder",
        layer=7,
        top_k=top_k,
        assignments=rows,
        decisions=np.maximum(1, rows.sum(axis=1) // top_k),
    )
    groups = tuple(f"g{number}" for number in range(len(rows)))
    (load,) = measure_load(ExpertCounts(groups=groups, domains=groups, layers=(layer,)))
    return load


def known(value: float | None) -> float:
    assert value is not None
    return value


@pytest.mark.parametrize("num_experts", [2, 8, 60])
def test_an_even_load_has_entropy_one(num_experts: int) -> None:
    load = load_of([5] * num_experts)
    assert load.entropy == pytest.approx(1, abs=1e-12)
    assert load.max_over_mean == pytest.approx(1, abs=1e-12)
    assert load.num_idle_experts == 0


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_collapse_onto_top_k_experts_has_the_least_entropy(top_k: int) -> None:
    load = load_of([30] * top_k + [0] * (8 - top_k), top_k=top_k)
    assert load.entropy == pytest.approx(log(top_k) / log(8), abs=1e-12)
    assert load.max_over_mean == pytest.approx(8 / top_k)
    assert load.num_idle_experts == 8 - top_k


def test_an_uneven_load_is_as_worked_out_by_hand() -> None:
    load = load_of([4, 2, 1, 1], top_k=2)
    # Shares 1/2, 1/4, 1/8, 1/8 have 1.75 bits of the 2 that four experts can have.
    assert load.entropy == pytest.approx(1.75 / 2)
    assert load.max_over_mean == pytest.approx(2)
    assert load.random_entropy == pytest.approx(1 - (4 - 2) / (2 * 8 * log(4)))


def test_groups_are_taken_together() -> None:
    assert load_of([[4, 0, 1, 0], [0, 2, 0, 1]]) == load_of([4, 2, 1, 1])


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=16).filter(any),
    st.randoms(use_true_random=False),
)
def test_the_numbering_of_experts_does_not_matter(load: list[int], random: Random) -> None:
    shuffled = list(load)
    random.shuffle(shuffled)
    one, other = load_of(load), load_of(shuffled)
    assert one.entropy == pytest.approx(other.entropy)
    assert one.max_over_mean == pytest.approx(other.max_over_mean)
    assert one.num_idle_experts == other.num_idle_experts


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=16).filter(any))
def test_entropy_and_the_busiest_expert_keep_to_their_range(load: list[int]) -> None:
    measured = load_of(load)
    assert -1e-12 <= known(measured.entropy) <= 1 + 1e-12
    assert 1 - 1e-12 <= known(measured.max_over_mean) <= len(load) + 1e-12
    assert measured.num_idle_experts == load.count(0)


def test_every_layer_is_measured_on_its_own_and_keeps_its_name() -> None:
    even, skewed = (
        LayerCounts(
            stack=stack,
            layer=layer,
            top_k=1,
            assignments=np.array([assignments]),
            decisions=np.array([8]),
        )
        for stack, layer, assignments in [("encoder", 1, [4, 4]), ("decoder", 3, [8, 0])]
    )
    loads = measure_load(ExpertCounts(groups=("g",), domains=("g",), layers=(even, skewed)))
    assert [(load.stack, load.layer) for load in loads] == [("encoder", 1), ("decoder", 3)]
    assert [load.max_over_mean for load in loads] == pytest.approx([1, 2])


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (16, 1), (32, 6)])
def test_the_baseline_is_what_a_random_router_gives(num_experts: int, top_k: int) -> None:
    rng = np.random.default_rng(0)
    num_tokens, num_runs = 1500, 300
    entropies = []
    for _ in range(num_runs):
        # The k largest of E random numbers are a uniform random k-subset.
        scores = rng.random((num_tokens, num_experts))
        experts = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
        load = np.bincount(experts.ravel(), minlength=num_experts)
        entropies.append(known(load_of(load, top_k=top_k).entropy))
    collapsed = load_of([num_tokens * top_k] + [0] * (num_experts - 1), top_k=top_k)
    baseline = known(collapsed.random_entropy)
    standard_error = np.std(entropies, ddof=1) / np.sqrt(num_runs)
    assert abs(np.mean(entropies) - baseline) < 4 * standard_error
    assert standard_error < 0.1 * (1 - baseline), "too few runs to tell"


def test_a_layer_that_ran_no_expert_has_no_load() -> None:
    load = load_of([0, 0, 0, 0])
    assert (load.entropy, load.random_entropy, load.max_over_mean) == (None, None, None)
    assert load.num_idle_experts == 4
