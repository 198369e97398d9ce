"""The usual expert's share by chance, against probabilities worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from moetool.analysis.specialization.by_token.baseline import (
    UsualShares,
    _draw_uniform,
    simulate_same_loads,
    simulate_uniform,
)

NUM_RUNS = 200


def find_shares(num_experts: int, top_k: int) -> UsualShares:
    """Return the shares of a router that runs top-k experts for every token."""
    return simulate_uniform(num_experts, (*[0] * top_k, 1), 0)


def assert_coin(shares: UsualShares, occurrences: int) -> None:
    """Check the larger of heads and tails within four standard errors of the simulation."""
    heads = np.arange(occurrences + 1)
    chance = scipy.stats.binom.pmf(heads, occurrences, 0.5)
    largest = np.maximum(heads, occurrences - heads) / occurrences
    expected = (chance * largest).sum()
    error = np.sqrt((chance * (largest - expected) ** 2).sum() / NUM_RUNS)
    assert abs(shares.mean(np.array([occurrences])) - expected) <= 4 * error + 1e-12


@pytest.mark.parametrize("occurrences", [1, 10, 100, 512])
def test_two_experts_are_those_of_a_coin(occurrences: int) -> None:
    assert_coin(find_shares(2, 1), occurrences)


def test_many_occurrences_are_extrapolated() -> None:
    """The largest of 8 counts of 10,000 occurrences is 1.42 standard deviations above the mean."""
    most = 10_000
    found = find_shares(8, 1).mean(np.array([most]))
    spread = np.sqrt(1 / 8 * 7 / 8 / most)
    assert found == pytest.approx(1 / 8 + 1.42 * spread, abs=0.2 * spread)


def test_one_occurrence_and_all_experts_leave_nothing_to_chance() -> None:
    assert find_shares(8, 2).mean(np.array([1])) == 1
    assert find_shares(4, 4).mean(np.array([1, 7, 90])) == 1


def test_occurrences_that_ran_no_expert_are_nobodys() -> None:
    """Each of n draws runs one of two experts with the chance of a half."""
    shares = simulate_uniform(2, (500, 500), 0)
    for occurrences in (1, 4, 9):
        ran = np.arange(occurrences + 1)
        expected = 0.0
        for number, chance in zip(ran, scipy.stats.binom.pmf(ran, occurrences, 0.5), strict=True):
            heads = np.arange(number + 1)
            largest = np.maximum(heads, number - heads)
            expected += chance * (scipy.stats.binom.pmf(heads, number, 0.5) * largest).sum()
        error = 0.5 / np.sqrt(NUM_RUNS)
        found = shares.mean(np.array([occurrences]))
        assert abs(found - expected / occurrences) < 4 * error / np.sqrt(occurrences)
    assert shares.mean(np.array([10_000_000])) == pytest.approx(0.25, abs=0.01)


def test_a_router_of_the_same_loads_draws_from_its_decisions() -> None:
    decisions = np.array([[3, 5], [5, 3], [5, -1]])
    shares = simulate_same_loads(decisions, num_experts=8, most=5, seed=0)
    assert shares.mean(np.array([1, 5])) == 1
    coin = simulate_same_loads(np.array([[0], [1]]), num_experts=8, most=10, seed=0)
    assert_coin(coin, 10)


def test_the_mean_is_over_token_ids() -> None:
    shares = find_shares(8, 1)
    each = [shares.mean(np.array([occurrences])) for occurrences in (2, 50, 50)]
    assert shares.mean(np.array([2, 50, 50])) == pytest.approx(np.mean(each))


def test_the_choices_that_layers_share_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _draw_uniform(4, 2, 0)[0, 0, 0] = 1
