"""The favourite expert's share by chance, against probabilities worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from moetool.analysis.specialization.by_token.baseline import Draw, FavouriteShares

NUM_RUNS = 200


def find_shares(
    num_experts: int, top_k: int, *, decisions: list[list[int]] | None = None, most: int = 600
) -> FavouriteShares:
    drawn_from = None if decisions is None else np.array(decisions)
    draw = Draw(drawn_from, num_experts=num_experts, top_k=top_k, seed=0)
    return FavouriteShares(draw, num_experts=num_experts, limit=top_k / num_experts, most=most)


def assert_coin(shares: FavouriteShares, occurrences: int) -> None:
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
    found = find_shares(8, 1, most=most).mean(np.array([most]))
    spread = np.sqrt(1 / 8 * 7 / 8 / most)
    assert found == pytest.approx(1 / 8 + 1.42 * spread, abs=0.2 * spread)


def test_one_occurrence_and_all_experts_leave_nothing_to_chance() -> None:
    assert find_shares(8, 2).mean(np.array([1])) == 1
    assert find_shares(4, 4).mean(np.array([1, 7, 90])) == 1


def test_a_popular_router_draws_from_its_decisions() -> None:
    shares = find_shares(8, 2, decisions=[[3, 5], [5, 3], [5, -1]], most=5)
    assert shares.mean(np.array([1, 5])) == 1
    assert_coin(find_shares(8, 1, decisions=[[0], [1]], most=10), 10)


def test_the_mean_is_over_token_ids() -> None:
    shares = find_shares(8, 1, most=50)
    each = [shares.mean(np.array([occurrences])) for occurrences in (2, 50, 50)]
    assert shares.mean(np.array([2, 50, 50])) == pytest.approx(np.mean(each))
