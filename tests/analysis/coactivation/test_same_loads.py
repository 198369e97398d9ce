"""Pairs that the loads alone explain, next to a sum over all sets of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moetool.analysis.coactivation.same_loads import expect_pairs


def sum_over_sets(weights: Sequence[float], share_of_size: Sequence[float]) -> NDArray[np.float64]:
    """Return the probability of each pair if a set's is proportional to the product of weights."""
    pairs = np.zeros((len(weights), len(weights)))
    for size, share in enumerate(share_of_size):
        sets = list(combinations(range(len(weights)), size))
        chances = [math.prod(weights[one] for one in chosen) for chosen in sets]
        for chosen, chance in zip(sets, chances, strict=True):
            for i in chosen:
                for j in chosen:
                    pairs[i, j] += share * chance / sum(chances)
    return pairs


def count_sizes(share_of_size: Sequence[float]) -> NDArray[np.int64]:
    return np.array([round(share * 1000) for share in share_of_size])


@given(
    st.lists(st.floats(0.01, 100), min_size=4, max_size=7),
    st.sampled_from([(0, 0, 1), (0, 0, 0, 1), (0, 0.25, 0.75), (0.125, 0, 0.5, 0.375)]),
)
def test_the_pairs_are_those_of_the_router_of_largest_entropy(
    weights: list[float], share_of_size: tuple[float, ...]
) -> None:
    wanted = sum_over_sets(weights, share_of_size)
    found = expect_pairs(wanted.diagonal().copy(), count_sizes(share_of_size))
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_even_loads_give_even_pairs() -> None:
    sizes = np.array([0, 0, 0, 0, 0, 0, 0, 0, 100])
    found = expect_pairs(np.full(64, 8 / 64), sizes)
    assert found is not None
    off_diagonal = found[~np.eye(64, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, 8 * 7 / (64 * 63), rtol=1e-9)


def test_experts_that_are_always_or_never_chosen_leave_the_others_to_chance() -> None:
    found = expect_pairs(np.array([1.0, 0.0, 0.5, 0.3, 0.2]), np.array([0, 0, 10]))
    assert found is not None
    np.testing.assert_allclose(found[0], [1.0, 0.0, 0.5, 0.3, 0.2])
    np.testing.assert_allclose(found[1], 0.0)
    # The second place is one expert's alone.
    np.testing.assert_allclose(found[2:, 2:], np.diag([0.5, 0.3, 0.2]), atol=1e-9)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_all_experts_chosen_are_chosen_together(top_k: int) -> None:
    sizes = np.zeros(top_k + 1, dtype=np.int64)
    sizes[-1] = 7
    found = expect_pairs(np.ones(top_k), sizes)
    assert found is not None
    np.testing.assert_array_equal(found, np.ones((top_k, top_k)))


def test_pairs_of_a_decision_add_up() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=2, size=256) + rng.gumbel(size=(5_000, 256))
    chosen = np.argsort(-scores, axis=1)[:, :8]
    load = np.bincount(chosen.ravel(), minlength=256) / len(chosen)
    sizes = np.array([0] * 8 + [5_000])
    found = expect_pairs(load, sizes)
    assert found is not None
    np.testing.assert_allclose(found.diagonal(), load)
    # Each decision with an expert has k - 1 others.
    np.testing.assert_allclose(found.sum(axis=1) - load, 7 * load, rtol=1e-6)
    assert (found >= 0).all()
