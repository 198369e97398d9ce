"""The interval of a prediction's gain covers the true gain, of few prompts as well as of many."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as students_t

from moetool.analysis.statistics.prediction import ScoredTokens, find_reach, rate_prediction

NUM_SAMPLES = 400
TOKENS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.sampled_from([5, 9, 70])),
    max_size=30,
)


@pytest.mark.parametrize("num_prompts", [2, 3, 5, 10])
@pytest.mark.parametrize("spread", ["even", "uneven", "one long"])
@pytest.mark.parametrize("differs", [False, True], ids=["alike", "different"])
def test_the_interval_covers_the_true_gain(num_prompts: int, spread: str, *, differs: bool) -> None:
    rng = np.random.default_rng(num_prompts)
    covered = 0
    for _ in range(NUM_SAMPLES):
        lengths = np.full(num_prompts, 30)
        if spread == "uneven":
            lengths = rng.integers(2, 80, size=num_prompts)
        elif spread == "one long":
            lengths[0] = 1000
        prompt = np.repeat(np.arange(num_prompts), lengths)
        # Prompts differ in their chance, which is 0.3 on average.
        chance = rng.beta(3, 7, size=num_prompts) if differs else np.full(num_prompts, 0.3)
        gained = rng.binomial(2, chance[prompt]) - rng.binomial(2, 0.25, size=len(prompt))
        chosen = np.full(len(prompt), 2)
        reach = find_reach(gained, chosen, prompt)
        assert reach is not None
        covered += abs(gained.sum() / chosen.sum() - 0.05) <= reach
    # Within four standard errors of 95 %, or above: a few prompts agree by chance.
    assert covered / NUM_SAMPLES > 0.95 - 4 * (0.05 * 0.95 / NUM_SAMPLES) ** 0.5


def test_of_equal_prompts_it_is_the_interval_of_their_means() -> None:
    means = np.array([0.0, 0.4, 0.5, 0.9])
    gained = np.concatenate(
        [np.repeat([1, 0], [int(10 * mean), 10 - int(10 * mean)]) for mean in means]
    )
    reach = find_reach(gained, np.ones(40, dtype=np.int64), np.repeat(np.arange(4), 10))
    expected = students_t.ppf(0.975, 3) * means.std(ddof=1) / 2
    # The quantile of three degrees of freedom is an expansion.
    assert reach == pytest.approx(expected, rel=2e-3)


def test_prompts_that_agree_by_chance_leave_the_variance_of_their_tokens() -> None:
    gained = np.tile([1, 0, 0, 0], 6)
    reach = find_reach(gained, np.ones(24, dtype=np.int64), np.repeat(np.arange(3), 8))
    variance = (24 * 0.25 * 0.75 + 0.5) / 24**2
    assert reach == pytest.approx(students_t.ppf(0.975, 2) * variance**0.5)


def test_tokens_that_are_all_equal_do_not_look_certain() -> None:
    reach = find_reach(np.ones(4, dtype=np.int64), np.ones(4, dtype=np.int64), np.arange(4) // 2)
    assert reach == pytest.approx(students_t.ppf(0.975, 1) * 0.5**0.5 / 4)


@given(TOKENS)
def test_figures_are_those_of_plain_python(tokens: list[tuple[int, int, int, int]]) -> None:
    columns = np.array(tokens, dtype=np.int64).reshape(-1, 4).T
    found = rate_prediction(ScoredTokens(*columns), chance=0.25, num_tokens_fitted=7)
    total = sum(chosen for _, _, chosen, _ in tokens)
    if not total:
        assert found is None
        return
    assert found is not None
    assert found.hit_rate == sum(hits for hits, *_ in tokens) / total
    assert found.popularity == sum(hits for _, hits, *_ in tokens) / total
    assert found.gain == found.hit_rate - found.popularity
    assert (found.baseline.hit_rate, found.num_tokens_fitted) == (0.25, 7)
    chosen_of = defaultdict[int, int](int)
    for *_, chosen, prompt in tokens:
        chosen_of[prompt] += chosen
    assert found.num_prompts_scored == sum(chosen > 0 for chosen in chosen_of.values())
    assert found.num_tokens_scored == len(tokens)
    assert (found.gain_low is None) == (found.num_prompts_scored < 2)
    if found.gain_low is not None and found.gain_high is not None:
        assert found.gain_low < found.gain < found.gain_high


@given(TOKENS, st.randoms())
def test_the_order_of_tokens_and_the_numbers_of_prompts_change_nothing(
    tokens: list[tuple[int, int, int, int]], shuffler: np.random.Generator
) -> None:
    columns = np.array(tokens, dtype=np.int64).reshape(-1, 4)
    gained, chosen, prompt = columns[:, 0] - columns[:, 1], columns[:, 2], columns[:, 3]
    order = np.arange(len(columns))
    shuffler.shuffle(order)
    one, other = (
        find_reach(gained, chosen, prompt),
        find_reach(gained[order], chosen[order], 100 - prompt[order]),
    )
    assert other == (None if one is None else pytest.approx(one))
