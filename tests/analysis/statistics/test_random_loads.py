"""Simulated loads have the moments of decisions whose choices go to random experts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moetool.analysis.statistics.random_loads import _draw_experts, list_sizes, simulate_loads

NUM_DRAWS = 2_000
# A decision that ran all choices, one with a choice of weight 0, and one that ran none.
WEIGHTS = np.array([[0.6, 0.3, 0.1], [0.9, 0.0, 0.0], [0.0, 0.0, 0.0]])
SHARE = np.array([0.5, 0.25, 0.25])


def list_moments(
    num_experts: int, values: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and covariance of a token's loads, of all kinds and experts, from every case.

    Experts of each kind follow each other. The order of decisions is not random, so that the
    covariance is that within decisions.
    """
    num_kinds, _, num_choices = values.shape
    size = num_kinds * num_experts
    mean, covariance = np.zeros(size), np.zeros((size, size))
    for decision, part in enumerate(share):
        cases = []
        for chosen in itertools.permutations(range(num_experts), num_choices):
            load = np.zeros((num_kinds, num_experts))
            load[:, list(chosen)] = values[:, decision]
            cases.append(load.ravel())
        mean += part * np.mean(cases, axis=0)
        covariance += part * np.cov(cases, rowvar=False, bias=True)
    return mean, covariance


# Few tokens are drawn choice by choice, many from the normal distribution.
@pytest.mark.parametrize("num_tokens", [4, 40, 4_000])
@pytest.mark.parametrize("num_experts", [3, 5])
def test_loads_have_the_mean_and_covariance_of_random_choices(
    num_experts: int, num_tokens: int
) -> None:
    values = np.stack([WEIGHTS, WEIGHTS > 0])
    loads = simulate_loads(num_experts, values, SHARE, num_tokens=num_tokens, num_draws=NUM_DRAWS)
    assert loads.shape == (2, NUM_DRAWS, num_experts)
    seen = loads.transpose(1, 0, 2).reshape(NUM_DRAWS, -1)
    mean, covariance = list_moments(num_experts, values, SHARE)
    error = np.sqrt(np.diag(covariance) * num_tokens / NUM_DRAWS)
    assert np.all(np.abs(seen.mean(axis=0) - mean * num_tokens) <= 4.5 * error + 1e-9)
    found = np.cov(seen, rowvar=False) / num_tokens
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    # The standard error of a covariance of n normal values is at most scale * sqrt(2 / n).
    assert np.all(np.abs(found - covariance) <= 5 * scale * np.sqrt(2 / NUM_DRAWS) + 1e-9)


def test_each_decision_counts_as_often_as_its_share_says() -> None:
    loads = simulate_loads(5, WEIGHTS[None], SHARE, num_tokens=8, num_draws=50)
    # Four decisions of weight 1, two of 0.9, two without.
    assert loads.sum(axis=2) == pytest.approx(np.full((1, 50), 4 * 1.0 + 2 * 0.9))


def test_sizes_as_decisions() -> None:
    values, share = list_sizes(((1, 6), (3, 2)), 10)
    assert values.tolist() == [[[1, 0, 0], [1, 1, 1], [0, 0, 0]]]
    assert share.tolist() == [0.6, 0.2, 0.2]
    none, share = list_sizes((), 4)
    assert simulate_loads(5, none, share, num_tokens=9, num_draws=2).tolist() == [[[0.0] * 5] * 2]


def test_the_choices_that_simulations_share_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _draw_experts(5, 2, 3, 4)[0, 0, 0] = 1
