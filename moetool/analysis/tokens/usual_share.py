"""Expected agreement of several draws, as of a router that doesn't look at tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Choices of a router that are simulated for a number of draws: many times the draws if these are
# few, and at least 20 times.
_NUM_CHOICES = 10_000
_LEAST_TIMES = 20
# More draws are faster as binomial ones of each expert.
_MANY_DRAWS = 1_000
# Numbers of draws that are simulated; others are interpolated.
_MOST_NUMBERS = 24


def expect_fixed(num_draws: NDArray[np.int64], chance: Floats) -> Floats:
    """Return the probability that all draws of a number give the same expert.

    Args:
        num_draws: # (num_ids,)
        chance: Probability of each expert in a draw. # (num_experts,)

    Returns:
        The sum of `chance ** num_draws`. # (num_ids,)
    """
    numbers, index = np.unique(num_draws, return_inverse=True)
    powers: Floats = np.array([(chance ** int(number)).sum() for number in numbers])
    return powers[index]


def expect_usual_share(num_draws: NDArray[np.int64], chance: Floats) -> Floats:
    """Return the mean share of the draws that give the expert drawn most, simulated.

    Args:
        num_draws: # (num_ids,)
        chance: Probability of each expert in a draw. # (num_experts,)

    Returns:
        # (num_ids,)
    """
    if not len(num_draws):
        return np.zeros(0)
    rng = np.random.default_rng(0)
    numbers = np.unique(num_draws)
    if len(numbers) > _MOST_NUMBERS:
        first, last = np.log(numbers[[0, -1]]).tolist()
        spread = np.exp(np.linspace(first, last, _MOST_NUMBERS))
        numbers = np.unique(np.rint(spread).astype(np.int64))
    shares = [_draw_most(rng, number, chance / chance.sum()) for number in numbers.tolist()]
    usual: Floats = np.interp(np.log(num_draws), np.log(numbers), shares)
    return usual


def count_times(num_draws: int) -> int:
    """Return how many times a number of draws is simulated."""
    return max(_LEAST_TIMES, _NUM_CHOICES // num_draws)


def _draw_most(rng: np.random.Generator, num_draws: int, chance: Floats) -> float:
    """Return the mean share of the expert drawn most."""
    times, width = count_times(num_draws), len(chance)
    if num_draws > _MANY_DRAWS:
        counts = rng.multinomial(num_draws, chance, size=times)
    else:
        # The last sum may be a little below 1.
        bounds = np.cumsum(chance)[:-1]
        drawn = np.searchsorted(bounds, rng.random((times, num_draws)), side="right")
        cell = np.arange(times)[:, None] * width + drawn
        counts = np.bincount(cell.ravel(), minlength=times * width).reshape(times, width)
    return float(counts.max(axis=1).mean()) / num_draws
