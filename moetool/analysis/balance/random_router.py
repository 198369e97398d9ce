"""The evenness that a uniform random router is expected to show on as many tokens.

A uniform random router gives every token a random set of distinct experts, independent of all
others. A token may choose fewer than top-k experts; the random router then chooses as few. What is
expected follows from `Sizes`: how many decisions chose how many experts.

Exact are the entropy, Gini coefficient and number of dead experts, whose expectations need the
distribution of one expert's load or of the difference of two. The expectations of cv and Jain's index
follow from the exact mean and variance of cv**2, as those of a gamma distribution. The load of the
expert of each rank (so max_violation and the percentiles) is that of independent experts, with
deviations from the mean scaled by sqrt(E / (E - 1)), because the loads of E experts have a fixed sum.
Simulated routers agree within 1 % where experts have two assignments or more, and within 6 % below.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.evenness import Evenness, find_percentiles
from moetool.analysis.statistics.decision_sizes import Sizes

# Standard deviations around the mean beyond which no probability is left in a float.
_REACH = 12
# Loads at which the distribution is evaluated to find the expected load of each rank.
_MOST_POINTS = 2001
_MOST_CELLS = 4_000_000
_LAGUERRE_POINTS = 48


@lru_cache(maxsize=4096)
def expect_evenness(num_experts: int, sizes: Sizes) -> Evenness:
    """Return the evenness expected from a uniform random router.

    Args:
        num_experts: Experts of the layer.
        sizes: Of its decisions.
    """
    total = sum(size * number for size, number in sizes)
    if not total:
        return Evenness(None, None, None, None, None, num_experts, None)
    if num_experts == 1:
        return Evenness(1.0, 0.0, 0.0, 0.0, 1.0, 0, find_percentiles(np.ones(1)))
    cv, jain = _expect_cv_and_jain(num_experts, sizes, total)
    by_rank = _expect_load_by_rank(num_experts, sizes) * (num_experts / total)
    return Evenness(
        entropy=_expect_entropy(num_experts, sizes, total),
        cv=cv,
        gini=_expect_gini(num_experts, sizes, total),
        max_violation=float(by_rank[-1] - 1),
        jain=jain,
        num_dead=expect_num_dead(num_experts, sizes),
        percentiles=find_percentiles(by_rank),
    )


def expect_largest_violation(layers: Sequence[tuple[int, Sizes]]) -> float | None:
    """Return the expected `max_violation` of the layer in which it is largest.

    Loads of layers are independent of each other, and within a layer as `expect_evenness` has it.

    Args:
        layers: Experts of each layer, and sizes of its decisions; those that ran no expert don't
            count.

    Returns:
        None if no expert ran in any layer.
    """
    number = Counter((num_experts, sizes) for num_experts, sizes in layers if sizes)
    if sum(number.values()) < 2:
        return next((expect_evenness(*layer).max_violation for layer in number), None)
    tails = [
        _find_violations(*layer, num_layers=num_layers) for layer, num_layers in number.items()
    ]
    grid = np.linspace(0, max(violation[-1] for violation, _ in tails), 2 * _MOST_POINTS)
    log = np.zeros(len(grid))
    for violation, log_below in tails:
        at = np.searchsorted(violation, grid, side="right") - 1
        log += np.where(at < 0, -np.inf, log_below[np.maximum(at, 0)])
    exceeds = -np.expm1(log)
    return float(grid[1] * (exceeds.sum() - (exceeds[0] + exceeds[-1]) / 2))


def _find_violations(
    num_experts: int, sizes: Sizes, *, num_layers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values of the largest violation of layers, and the log chance of at most each.

    Returns:
        In ascending order # (num_values,) each
    """
    if num_experts == 1:
        return np.zeros(1), np.zeros(1)
    start, chance = find_load_distribution(num_experts, sizes)
    load = start + np.arange(len(chance))
    mean = sum(size * number for size, number in sizes) / num_experts
    scaled = mean + (load - mean) * math.sqrt(num_experts / (num_experts - 1))
    with np.errstate(divide="ignore"):
        log_below = np.log(np.minimum(np.cumsum(chance), 1))
    log_below[-1] = 0.0
    # An expert gets at most one assignment of each decision.
    most = sum(number for _, number in sizes)
    return np.minimum(scaled, most) / mean - 1, num_layers * num_experts * log_below


def expect_squared_cv(num_experts: int, sizes: Sizes) -> float | None:
    """Return the expectation of cv**2, `(E - k) / (T k)`; None where no expert runs."""
    total = sum(size * number for size, number in sizes)
    squares = sum(size**2 * number for size, number in sizes)
    return num_experts / total - squares / total**2 if total else None


def expect_num_dead(num_experts: int, sizes: Sizes) -> float:
    """Return the expected number of experts that are never chosen: `E (1 - k / E) ** T`."""
    if any(size == num_experts for size, _ in sizes):
        return 0.0
    log = math.fsum(number * math.log1p(-size / num_experts) for size, number in sizes)
    return num_experts * math.exp(log)


def find_load_distribution(num_experts: int, sizes: Sizes) -> tuple[int, NDArray[np.float64]]:
    """Return the distribution of one expert's load: its smallest value, and the probabilities.

    Loads that are all but impossible are left out.
    """
    start, chance = 0, np.ones(1)
    for size, number in sizes:
        first, other = find_binomial(number, size / num_experts)
        start, chance = start + first, _convolve(chance, other)
    return start, chance


def find_binomial(number: int, p: float) -> tuple[int, NDArray[np.float64]]:
    """Return the binomial distribution: the smallest value that can occur, and the probabilities."""
    if p <= 0 or p >= 1:
        return number if p > 0 else 0, np.ones(1)
    mean, deviation = number * p, math.sqrt(number * p * (1 - p))
    low = max(0, math.floor(mean - _REACH * deviation - _REACH))
    high = min(number, math.ceil(mean + _REACH * deviation + _REACH))
    value = np.arange(low, high)
    # By the ratio of neighbours: factorials would overflow.
    steps = np.log((number - value) / (value + 1)) + math.log(p / (1 - p))
    log = np.concatenate([[0.0], np.cumsum(steps)])
    chance = np.exp(log - log.max())
    return low, chance / chance.sum()


def _expect_entropy(num_experts: int, sizes: Sizes, total: int) -> float:
    start, chance = find_load_distribution(num_experts, sizes)
    share = (start + np.arange(len(chance))) / total
    log = np.log(share, out=np.zeros_like(share), where=share > 0)
    return float(-num_experts * (chance * share * log).sum() / math.log(num_experts))


def _expect_gini(num_experts: int, sizes: Sizes, total: int) -> float:
    """Return the expectation of `sum |c_i - c_j| / (2 E N)`, from that of one pair.

    Each decision changes the difference of two loads by +1 or by -1, each with the chance
    `q = k (E - k) / (E (E - 1))`, so that the characteristic function of the difference is the
    product of `1 - 2 q + 2 q cos t` over the decisions.
    """
    chances = [
        (size * (num_experts - size) / (num_experts * (num_experts - 1)), number)
        for size, number in sizes
    ]
    variance = sum(2 * q * number for q, number in chances)
    reach = math.ceil(_REACH * math.sqrt(variance)) + 2 * _REACH
    width = 1 << (2 * reach).bit_length()
    cosine = np.cos(2 * np.pi * np.arange(width // 2 + 1) / width)
    characteristic = np.ones(len(cosine))
    for q, number in chances:
        characteristic *= (1 - 2 * q + 2 * q * cosine) ** number
    chance = np.fft.irfft(characteristic, n=width)  # Of differences 0, 1, …, -2, -1.
    difference = np.minimum(np.arange(width), width - np.arange(width))
    return float((num_experts - 1) * (chance * difference).sum() / (2 * total))


def _expect_cv_and_jain(num_experts: int, sizes: Sizes, total: int) -> tuple[float, float]:
    """Return the expectations of cv and `1 / (1 + cv**2)` from the mean and variance of cv**2.

    `sum(c**2)` is the sum, over all pairs of decisions, of the number of experts that both chose,
    which for different decisions are uncorrelated and hypergeometric.
    """
    mean = expect_squared_cv(num_experts, sizes) or 0.0
    spread = [(size * (num_experts - size), number) for size, number in sizes]
    pairs = sum(one * number for one, number in spread) ** 2
    pairs -= sum(one**2 * number for one, number in spread)
    variance = 2 * pairs / ((num_experts - 1) * total**4)
    if mean <= 1e-15:
        return 0.0, 1.0
    if variance <= 1e-12 * mean**2:
        return math.sqrt(mean), 1 / (1 + mean)
    shape, scale = mean**2 / variance, variance / mean
    cv = math.sqrt(scale) * math.exp(math.lgamma(shape + 0.5) - math.lgamma(shape))
    # E[1 / (1 + x)] is the integral of exp(-s) E[exp(-s x)] over s from 0 to infinity.
    points, weights = np.polynomial.laguerre.laggauss(_LAGUERRE_POINTS)
    return cv, float((weights * (1 + scale * points) ** -shape).sum())


def _expect_load_by_rank(num_experts: int, sizes: Sizes) -> NDArray[np.float64]:
    """Return the expected loads of a layer's experts in ascending order: (num_experts,)."""
    start, chance = find_load_distribution(num_experts, sizes)
    load = start + np.arange(len(chance))
    mean = float((chance * load).sum())
    points = max(2, min(_MOST_POINTS, _MOST_CELLS // (num_experts + 1)))
    step = max(1, math.ceil(len(chance) / points))
    below = np.clip(np.cumsum(chance), 0, 1)[::step]  # (num_points,)
    # Chance that exactly j of E independent experts have at most a load. # (num_points, E + 1)
    j = np.arange(num_experts + 1)
    log_choose = np.array(
        [
            math.lgamma(num_experts + 1) - math.lgamma(n + 1) - math.lgamma(num_experts - n + 1)
            for n in j
        ]
    )
    with np.errstate(divide="ignore"):
        log_below, log_above = np.log(below)[:, None], np.log1p(-below)[:, None]
    log = log_choose + _multiply(j, log_below) + _multiply(num_experts - j, log_above)
    exceeds = np.cumsum(np.exp(log), axis=1)[:, :-1]  # Fewer than rank experts have at most it.
    # With a coarse grid, the sum of the survival function overshoots by half a step.
    by_rank = start + step * exceeds.sum(axis=0) - (step - 1) / 2 * (step > 1)
    scaled = mean + (by_rank - mean) * math.sqrt(num_experts / (num_experts - 1))
    clipped: NDArray[np.float64] = np.clip(scaled, 0, sum(number for _, number in sizes))
    return clipped


def _multiply(number: NDArray[np.int64], log: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return products with `0 * -inf = 0`."""
    product: NDArray[np.float64] = np.where(number == 0, 0.0, np.maximum(number, 1) * log)
    return product


def _convolve(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(one) * len(other) < _MOST_CELLS:
        return np.convolve(one, other)
    size = len(one) + len(other) - 1
    product = np.fft.rfft(one, size) * np.fft.rfft(other, size)
    return np.clip(np.fft.irfft(product, size), 0, None)
