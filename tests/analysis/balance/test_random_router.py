"""The expected figures of a uniform random router, against simulated ones and published formulas."""

from __future__ import annotations

from math import log, pi, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm

from moetool.analysis.balance.evenness import Evenness, measure_evenness
from moetool.analysis.balance.random_router import (
    expect_evenness,
    expect_largest_violation,
    expect_num_dead,
    expect_squared_cv,
    find_binomial,
    find_load_distribution,
)
from moetool.analysis.statistics.decision_sizes import Sizes, make_sizes

NUM_RUNS = 240


def draw_load(num_experts: int, sizes: Sizes, rng: np.random.Generator) -> NDArray[np.int64]:
    load = np.zeros(num_experts, dtype=np.int64)
    for size, number in sizes:
        order = np.argsort(rng.random((number, num_experts)), axis=1)
        load += np.bincount(order[:, :size].ravel(), minlength=num_experts)
    return load


def list_figures(evenness: Evenness) -> dict[str, float]:
    assert evenness.percentiles is not None
    figures = {
        name: getattr(evenness, name)
        for name in ("entropy", "cv", "gini", "max_violation", "jain", "num_dead")
    }
    return figures | dict(evenness.percentiles)


@pytest.mark.parametrize(
    ("num_experts", "sizes"),
    [
        (8, ((2, 40),)),
        (8, ((2, 1500),)),
        (16, ((1, 60),)),
        (64, ((6, 100),)),
        (2, ((1, 30),)),
        (6, ((3, 50), (1, 40), (0, 5))),
    ],
)
def test_simulated_random_routers_land_on_the_expectations(num_experts: int, sizes: Sizes) -> None:
    rng = np.random.default_rng(1)
    runs = [
        list_figures(measure_evenness(draw_load(num_experts, sizes, rng))) for _ in range(NUM_RUNS)
    ]
    expected = list_figures(expect_evenness(num_experts, sizes))
    exact = {"entropy", "gini", "num_dead"}
    for name, value in expected.items():
        seen = np.array([run[name] for run in runs])
        error = seen.std(ddof=1) / sqrt(NUM_RUNS)
        # Dead experts may be too rare to be seen at all.
        rare = 5 / NUM_RUNS if name == "num_dead" else 0.0
        approximation = 0.0 if name in exact else 0.02 * max(seen.mean(), 0.1)
        assert abs(seen.mean() - value) < 4.5 * error + rare + approximation + 1e-12, name


def test_the_expectations_are_the_published_formulas_for_many_tokens() -> None:
    num_experts, top_k, num_tokens = 64, 6, 200_000
    total = num_tokens * top_k
    expected = expect_evenness(num_experts, ((top_k, num_tokens),))
    assert expected.entropy is not None
    assert 1 - expected.entropy == pytest.approx(
        (num_experts - top_k) / (2 * total * log(num_experts)), rel=1e-3
    )
    assert expected.cv == pytest.approx(sqrt((num_experts - top_k) / total), rel=0.005)
    assert expected.gini == pytest.approx(
        sqrt((num_experts - 1) / num_experts * (num_experts - top_k) / (pi * total)), rel=1e-3
    )
    assert expected.jain == pytest.approx(1 - (num_experts - top_k) / total, rel=1e-7)
    # The largest of E normal numbers, as the integral of z over its density.
    z = np.linspace(-8, 8, 20_001)
    largest = float((z * num_experts * norm.pdf(z) * norm.cdf(z) ** (num_experts - 1)).sum())
    largest *= z[1] - z[0]
    deviation = sqrt((num_experts - top_k) / total * num_experts / (num_experts - 1))
    assert expected.max_violation == pytest.approx(largest * deviation, rel=0.01)


def test_the_mean_of_squared_cv_is_exact() -> None:
    assert expect_squared_cv(8, ((2, 100),)) == pytest.approx(6 / 200)
    # One token of top-k loads k experts with 1 and the others with 0, whatever it draws.
    one_token = measure_evenness(np.array([1, 1, 0, 0, 0, 0, 0, 0]))
    expected = expect_evenness(8, ((2, 1),))
    for name in ("entropy", "cv", "gini", "jain", "num_dead"):
        assert getattr(expected, name) == pytest.approx(getattr(one_token, name)), name


def test_dead_experts_are_those_that_no_token_draws() -> None:
    assert expect_num_dead(64, ((6, 50),)) == pytest.approx(64 * (1 - 6 / 64) ** 50)
    assert expect_num_dead(4, ((4, 1),)) == 0


@pytest.mark.parametrize("num_experts", [1, 2, 5])
def test_choosing_every_expert_is_even(num_experts: int) -> None:
    expected = expect_evenness(num_experts, ((num_experts, 9),))
    assert (expected.entropy, expected.jain) == pytest.approx((1, 1))
    assert (expected.cv, expected.gini, expected.max_violation) == pytest.approx((0, 0, 0))
    assert expected.num_dead == 0


@pytest.mark.parametrize(("number", "p"), [(7, 0.3), (400, 0.02), (3000, 0.9), (0, 0.5)])
def test_the_binomial_distribution_is_that_of_scipy(number: int, p: float) -> None:
    start, chance = find_binomial(number, p)
    np.testing.assert_allclose(
        chance, binom.pmf(start + np.arange(len(chance)), number, p), rtol=1e-8, atol=1e-15
    )
    assert chance.sum() == pytest.approx(1)


def test_decisions_of_several_sizes_add_up_to_the_right_mean_and_variance() -> None:
    sizes: Sizes = ((3, 50), (1, 20))
    start, chance = find_load_distribution(6, sizes)
    load = start + np.arange(len(chance))
    mean = float((chance * load).sum())
    assert mean == pytest.approx(50 / 2 + 20 / 6)
    variance = 50 / 4 + 20 * 5 / 36
    assert float((chance * (load - mean) ** 2).sum()) == pytest.approx(variance)


def test_more_tokens_than_are_evaluated_one_by_one_give_the_same_order_of_loads() -> None:
    fine, coarse = (
        expect_evenness(32, ((4, number),)).max_violation for number in (400_000, 1_600_000)
    )
    assert fine is not None
    assert coarse is not None
    assert coarse == pytest.approx(fine / 2, rel=0.005)


def test_sizes_leave_out_what_chose_nothing() -> None:
    assert make_sizes(np.array([3, 0, 5])) == ((2, 5),)
    assert make_sizes({2: 4, 1: 0}) == ((2, 4),)


@pytest.mark.parametrize(
    "layers",
    [
        [(64, ((2, 300),))] * 24,
        [(16, ((1, 200), (3, 100)))] * 6 + [(8, ((2, 150),))] * 3,
        [(32, ((1, 2000),)), (32, ())],
    ],
    ids=["alike", "unlike", "one"],
)
def test_the_largest_of_all_layers_is_that_of_simulated_routers(
    layers: list[tuple[int, Sizes]],
) -> None:
    rng = np.random.default_rng(0)
    largest = []
    for _ in range(60):
        loads = [draw_load(*layer, rng) for layer in layers]
        largest.append(max(load.max() / load.mean() - 1 for load in loads if load.any()))
    expected = expect_largest_violation(layers)
    error = np.std(largest) / np.sqrt(len(largest))
    # Independent experts with scaled deviations are an approximation.
    assert expected == pytest.approx(np.mean(largest), abs=4 * error + 0.01)


def test_the_largest_of_one_layer_is_its_own_and_of_none_unknown() -> None:
    sizes = ((2, 40),)
    assert (
        expect_largest_violation([(8, sizes), (8, ())]) == expect_evenness(8, sizes).max_violation
    )
    assert expect_largest_violation([(8, ())]) is None
    assert expect_largest_violation([(1, ((1, 5),))] * 2) == 0
