"""The spread of load between prompts: what is surely hot, and what only these prompts make so."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from moetool.analysis.balance.between_prompts.hot import HotExpert, find_hot
from moetool.analysis.balance.between_prompts.spread import PromptSpread
from moetool.analysis.statistics.random_choices import draw_choices


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
    total = loads.sum()
    h = [sum(row) / total for row in loads.tolist()]
    sum_of_squares = sum(each**2 for each in h)
    for expert in range(5):
        share = loads[:, expert].sum() / total
        expected = sum(
            (row[expert] / total - share * each) ** 2 / (1 - 2 * each + sum_of_squares)
            for row, each in zip(loads.tolist(), h, strict=True)
        )
        assert variance[expert] == pytest.approx(expected)


def test_the_variance_of_equally_long_prompts_is_that_of_their_mean() -> None:
    loads = np.random.default_rng(0).multinomial(30, [0.4, 0.3, 0.2, 0.1], size=7)
    variance = spread_of(loads).find_share_variance()
    assert variance == pytest.approx((loads / 30).var(axis=0, ddof=1) / 7)
    assert spread_of(loads).find_degrees_of_freedom() == pytest.approx(6)


@pytest.mark.parametrize("is_one_long", [False, True])
def test_the_variance_has_no_bias_where_prompts_differ_in_length(*, is_one_long: bool) -> None:
    rng = np.random.default_rng(1)
    lengths = np.array([400] + [20] * 9 if is_one_long else [20, 40, 80, 160, 320])
    num_runs = 2000
    shares, variances = [], []
    for _ in range(num_runs):
        chance = rng.dirichlet([0.5] * 6, size=len(lengths))
        # What a prompt's own preference adds: no chance of single tokens.
        loads = lengths[:, None] * np.rint(chance * 10_000).astype(np.int64)
        shares.append(loads.sum(axis=0) / loads.sum())
        variance = spread_of(loads).find_share_variance()
        assert variance is not None
        variances.append(variance)
    seen, stated = np.var(shares, axis=0, ddof=1).mean(), np.mean(variances)
    error = np.std([each.mean() for each in variances]) / sqrt(num_runs)
    assert abs(stated - seen) < 4 * (seen * sqrt(2 / num_runs) + error)


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
    (hot,) = find_hot(spread, above=1.2)
    assert (hot.expert, hot.load) == (0, 360)
    assert hot.over_mean == pytest.approx(360 * 4 / loads.sum())
    assert 1.2 < hot.over_mean_low < hot.over_mean < hot.over_mean_high
    assert spread.num_choosing.tolist() == [12, 12, 12, 0]
    assert spread.num_prompts == 12


def test_an_expert_that_one_prompt_prefers_is_not() -> None:
    loads = np.tile([2, 2, 2, 2], (12, 1))
    loads[3, 0] = 500
    assert find_hot(spread_of(loads), above=1.2) == ()


def test_the_hottest_comes_first() -> None:
    loads = np.tile([20, 1, 40, 1, 1, 1], (30, 1))
    assert [hot.expert for hot in find_hot(spread_of(loads), above=1.1)] == [2, 0]


@pytest.mark.parametrize("num_prompts", [0, 1])
def test_fewer_than_two_prompts_have_no_spread(num_prompts: int) -> None:
    spread = spread_of(np.ones((num_prompts, 4), dtype=np.int64))
    assert spread.find_share_variance() is None
    assert find_hot(spread, above=0.5) == ()


def test_even_prompts_have_no_hot_expert_and_no_variance() -> None:
    spread = spread_of(np.full((8, 4), 6))
    variance = spread.find_share_variance()
    assert variance is not None
    assert variance.tolist() == [0, 0, 0, 0]
    assert find_hot(spread, above=1.0) == ()
    hot: tuple[HotExpert, ...] = find_hot(spread, above=0.7)
    assert [each.over_mean for each in hot] == [1, 1, 1, 1]


def draw_loads(
    rng: np.random.Generator, lengths: NDArray[np.int64], *, num_experts: int, chance_short: float
) -> NDArray[np.int64]:
    """Return a random router's loads of prompts; some of its decisions run one expert of two."""
    prompt = np.repeat(np.arange(len(lengths)), lengths)
    sizes = 2 - (rng.random(len(prompt)) < chance_short)
    chosen = draw_choices(rng, num_experts, sizes)
    cell = (prompt[:, None] * num_experts + chosen)[chosen >= 0]
    return np.bincount(cell, minlength=len(lengths) * num_experts).reshape(-1, num_experts)


def find_p_value(loads: NDArray[np.int64]) -> float:
    p_value = spread_of(loads).find_evenness_p_value()
    assert p_value is not None
    return p_value


@pytest.mark.parametrize("num_prompts", [3, 5, 20])
@pytest.mark.parametrize("chance_short", [0.0, 0.6])
def test_a_random_router_is_flagged_as_often_as_stated(
    num_prompts: int, chance_short: float
) -> None:
    rng = np.random.default_rng(num_prompts)
    lengths = np.full(num_prompts, 40)
    num_runs = 1000
    p_values = np.array(
        [
            find_p_value(draw_loads(rng, lengths, num_experts=8, chance_short=chance_short))
            for _ in range(num_runs)
        ]
    )
    for level in (0.05, 0.3):
        error = sqrt(level * (1 - level) / num_runs)
        # With three prompts, f is uncertain, and errs on the side of fewer flags.
        assert 0.6 * level - error < (p_values <= level).mean() < level + 3.5 * error


def test_an_even_router_of_unlike_prompts_is_rarely_flagged() -> None:
    """Prompts are of few kinds, each with its favourites, and of various lengths."""
    rng = np.random.default_rng(0)
    kinds = np.kron(np.eye(4), np.ones(2)) * 0.4 + 0.025  # (4, 8), each row sums to 1
    p_values = []
    for _ in range(300):
        lengths = rng.geometric(1 / 50, size=12) + 1
        kind = rng.integers(4, size=12)
        loads = np.array(
            [rng.multinomial(2 * n, kinds[one]) for n, one in zip(lengths, kind, strict=True)]
        )
        p_values.append(find_p_value(loads))
    assert (np.array(p_values) <= 0.05).mean() < 0.05 + 3.5 * sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(
    "lengths",
    [[400] + [20] * 9, [200] + [50] * 5, [20, 40, 80], [20, 40, 80, 160, 320], [50] * 10],
    ids=["one long", "one longer", "three", "doubled", "equal"],
)
@pytest.mark.parametrize("num_experts", [16, 64])
def test_prompts_of_other_lengths_with_preferences_are_rarely_flagged(
    lengths: list[int], num_experts: int
) -> None:
    """Preferences of single prompts are even on average over prompts."""
    rng = np.random.default_rng(0)
    p_values, num_hot, num_runs = [], 0, 300
    for _ in range(num_runs):
        chance = rng.dirichlet(np.full(num_experts, 0.3), size=len(lengths))
        spread = spread_of(rng.multinomial(2 * np.array(lengths), chance))
        p_values.append(spread.find_evenness_p_value())
        num_hot += len(find_hot(spread, above=1))
    for level in (0.01, 0.05):
        error = sqrt(level * (1 - level) / num_runs)
        assert (np.array(p_values) <= level).mean() < level + 3.5 * error
    # Only one limit of a 95 % interval counts.
    assert num_hot / num_runs / num_experts < 0.025


def test_one_long_prompt_is_not_evidence() -> None:
    rng = np.random.default_rng(0)
    loads = rng.multinomial(10, np.full(6, 1 / 6), size=5)
    loads[0] = [900, 500, 100, 100, 100, 100]
    assert find_p_value(loads) > 0.05


def test_a_preference_of_all_prompts_is_found() -> None:
    rng = np.random.default_rng(0)
    loads = rng.multinomial(100, [0.3, 0.2, 0.125, 0.125, 0.125, 0.125], size=5)
    assert find_p_value(loads) < 1e-4


def test_the_p_value_is_that_of_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = np.random.default_rng(3).multinomial(60, np.arange(1, 8) / 28, size=11)
    loads[4] *= 3
    n = loads.sum(axis=1)
    total, share = n.sum(), loads.sum(axis=0) / n.sum()
    h = n / total
    v = np.zeros((7, 7))
    for row, each in zip(loads, h, strict=True):
        residual = row / total - share * each
        v += np.outer(residual, residual) / (1 - 2 * each + (h**2).sum())
    inverse_df = (h**2).sum()
    for one in range(11):
        for other in set(range(11)) - {one}:
            inverse_df += (h[one] * h[other]) ** 2 / ((1 - h[one]) * (1 - h[other]))
    df = 1 / inverse_df
    squared = df**2 / ((df - 1) * (df + 2)) * (np.trace(v @ v) - np.trace(v) ** 2 / df)
    f = (np.trace(v) ** 2 - 2 * squared / df) / squared
    assert 1 < f < 6
    ratio = ((share - 1 / 7) ** 2).sum() / np.trace(v)
    assert find_p_value(loads) == pytest.approx(f_distribution.sf(ratio, f, f * df))
    # Layers too wide for covariances are compared with the fewest degrees of freedom there are.
    monkeypatch.setattr("moetool.analysis.balance.between_prompts.spread._MOST_EXPERTS", 6)
    assert find_p_value(loads) == pytest.approx(f_distribution.sf(ratio, 1, df))


@pytest.mark.parametrize("num_prompts", [0, 1, 2])
def test_fewer_than_three_prompts_have_no_p_value(num_prompts: int) -> None:
    loads = np.tile([5, 3, 1, 1], (num_prompts, 1))
    assert spread_of(loads).find_evenness_p_value() is None


def test_parts_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = np.random.default_rng(5).poisson(2, size=(40, 5))
    whole = find_p_value(loads)
    monkeypatch.setattr("moetool.analysis.balance.between_prompts.spread._MOST_CELLS", 15)
    assert find_p_value(loads) == pytest.approx(whole)


def test_the_longest_prompts_are_weighed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    lengths = np.append(np.full(500, 20), [900, 400])
    loads = rng.multinomial(lengths, rng.dirichlet([0.5] * 6, size=len(lengths)))[::-1]
    found, p_value = spread_of(loads).find_share_variance(), find_p_value(loads)
    monkeypatch.setattr("moetool.analysis.balance.between_prompts.spread._MOST_KEPT", 1000)
    exact = spread_of(loads).find_share_variance()
    # All prompts that are not kept have one length, and so one weight.
    assert found == pytest.approx(exact)
    assert p_value == pytest.approx(find_p_value(loads))
    monkeypatch.setattr("moetool.analysis.balance.between_prompts.spread._MOST_KEPT", 1)
    larger = spread_of(loads).find_share_variance()
    assert found is not None
    assert larger is not None
    # The second of the long ones gives its weight to all others.
    assert (larger > found).all()
