"""Figures of evenness against loops over plain numbers, and against their known extremes."""

from __future__ import annotations

from math import log, sqrt
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.analysis.balance.evenness import Evenness, measure_evenness

LOADS = st.lists(st.integers(0, 10_000), min_size=2, max_size=24).filter(any)
FIGURES = ("entropy", "cv", "gini", "max_violation", "jain", "num_dead")


def measure(load: list[int]) -> Evenness:
    return measure_evenness(np.array(load, dtype=np.int64))


def measure_by_loops(load: list[int]) -> dict[str, float]:
    total, size = sum(load), len(load)
    mean = total / size
    shares = [c / total for c in load if c]
    cv = sqrt(sum((c - mean) ** 2 for c in load) / size) / mean
    return {
        "entropy": -sum(p * log(p) for p in shares) / log(size),
        "cv": cv,
        "gini": sum(abs(one - other) for one in load for other in load) / (2 * size * total),
        "max_violation": max(load) / mean - 1,
        "jain": total**2 / (size * sum(c * c for c in load)),
        "num_dead": load.count(0),
    }


@given(LOADS)
def test_figures_are_those_of_their_definitions(load: list[int]) -> None:
    measured, expected = measure(load), measure_by_loops(load)
    for name in FIGURES:
        assert getattr(measured, name) == pytest.approx(expected[name], abs=1e-9), name


@given(LOADS, st.randoms(use_true_random=False))
def test_the_numbering_of_experts_does_not_matter(load: list[int], random: Random) -> None:
    shuffled = list(load)
    random.shuffle(shuffled)
    one, other = measure(load), measure(shuffled)
    for name in FIGURES:
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9)
    assert one.percentiles == other.percentiles


@given(LOADS)
def test_percentiles_are_those_of_numpy_over_the_mean(load: list[int]) -> None:
    percentiles = measure(load).percentiles
    assert percentiles is not None
    over_mean = np.array(load) / np.mean(load)
    for name, value in percentiles.items():
        expected = np.percentile(over_mean, int(name.removeprefix("p")))
        assert value == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 6), (16, 1)])
def test_a_collapse_onto_top_k_experts_has_the_stated_extremes(
    num_experts: int, top_k: int
) -> None:
    measured = measure([50] * top_k + [0] * (num_experts - top_k))
    assert measured.entropy == pytest.approx(log(top_k) / log(num_experts))
    assert measured.cv == pytest.approx(sqrt(num_experts / top_k - 1))
    assert measured.gini == pytest.approx(1 - top_k / num_experts)
    assert measured.max_violation == pytest.approx(num_experts / top_k - 1)
    assert measured.jain == pytest.approx(top_k / num_experts)
    assert measured.num_dead == num_experts - top_k


@pytest.mark.parametrize("num_experts", [1, 2, 60])
def test_an_even_load_is_even_by_every_figure(num_experts: int) -> None:
    measured = measure([7] * num_experts)
    assert (measured.entropy, measured.jain) == pytest.approx((1, 1))
    assert (measured.cv, measured.gini, measured.max_violation) == pytest.approx((0, 0, 0))
    assert set((measured.percentiles or {}).values()) == {1.0}


def test_a_layer_in_which_no_expert_ran_has_only_dead_experts() -> None:
    assert measure([0, 0, 0]) == Evenness(None, None, None, None, None, 3, None)
