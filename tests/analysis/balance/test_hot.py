"""The spread of load between prompts: what is surely hot, and what only these prompts make so."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from moetool.analysis.balance.hot import HotExpert, PromptSpread


def spread_of(loads: NDArray[np.int64]) -> PromptSpread:
    """Return the spread of prompts whose assignments to each expert are given, in two parts."""
    spread = PromptSpread(loads.shape[1])
    for part in np.array_split(loads, 2):
        prompt, expert = np.nonzero(part)
        spread.add(prompt, expert, part[prompt, expert])
    return spread


def test_the_variance_of_a_share_is_that_of_a_ratio_of_sums_over_prompts() -> None:
    loads = np.random.default_rng(0).poisson(3, size=(9, 5))
    variance = spread_of(loads).find_share_variance()
    assert variance is not None
    total, num_prompts = loads.sum(), len(loads)
    for expert in range(5):
        share = loads[:, expert].sum() / total
        squares = sum((row[expert] - share * sum(row)) ** 2 for row in loads.tolist())
        expected = num_prompts / (num_prompts - 1) * squares / total**2
        assert variance[expert] == pytest.approx(expected)


def test_the_variance_is_that_of_repeated_draws_of_prompts() -> None:
    rng = np.random.default_rng(1)
    num_prompts, num_runs = 40, 400
    shares, variances = [], []
    for _ in range(num_runs):
        # Each prompt prefers different experts.
        chance = rng.dirichlet([0.5] * 6, size=num_prompts)
        loads = np.array([rng.multinomial(50, each) for each in chance])
        shares.append(loads.sum(axis=0) / loads.sum())
        variance = spread_of(loads).find_share_variance()
        assert variance is not None
        variances.append(variance)
    seen, stated = np.var(shares, axis=0, ddof=1).mean(), np.mean(variances)
    # The relative standard error of a variance from n runs is sqrt(2 / n), of six even less.
    assert stated == pytest.approx(seen, rel=4 * sqrt(2 / num_runs))


def test_an_expert_that_every_prompt_prefers_is_hot() -> None:
    loads = np.tile([30, 5, 5, 0], (12, 1))
    loads[::2, 1] += 1
    spread = spread_of(loads)
    (hot,) = spread.find_hot(above=1.2)
    assert (hot.expert, hot.load) == (0, 360)
    assert hot.over_mean == pytest.approx(360 * 4 / loads.sum())
    assert 1.2 < hot.over_mean_low < hot.over_mean < hot.over_mean_high
    assert spread.num_choosing.tolist() == [12, 12, 12, 0]
    assert spread.num_prompts == 12


def test_an_expert_that_one_prompt_prefers_is_not() -> None:
    loads = np.tile([2, 2, 2, 2], (12, 1))
    loads[3, 0] = 500
    assert spread_of(loads).find_hot(above=1.2) == ()


def test_the_hottest_comes_first() -> None:
    loads = np.tile([20, 1, 40, 1, 1, 1], (30, 1))
    assert [hot.expert for hot in spread_of(loads).find_hot(above=1.1)] == [2, 0]


@pytest.mark.parametrize("num_prompts", [0, 1])
def test_fewer_than_two_prompts_have_no_spread(num_prompts: int) -> None:
    spread = spread_of(np.ones((num_prompts, 4), dtype=np.int64))
    assert spread.find_share_variance() is None
    assert spread.find_hot(above=0.5) == ()


def test_even_prompts_have_no_hot_expert_and_no_variance() -> None:
    spread = spread_of(np.full((8, 4), 6))
    variance = spread.find_share_variance()
    assert variance is not None
    assert variance.tolist() == [0, 0, 0, 0]
    assert spread.find_hot(above=1.0) == ()
    hot: tuple[HotExpert, ...] = spread.find_hot(above=0.7)
    assert [each.over_mean for each in hot] == [1, 1, 1, 1]
