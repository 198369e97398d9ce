"""Expected agreement of several draws, as of a router that doesn't look at tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NUM_DRAWS = 500
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
    even = chance / chance.sum()
    shares = [
        rng.multinomial(number, even, size=_NUM_DRAWS).max(axis=1).mean() / number
        for number in numbers.tolist()
    ]
    usual: Floats = np.interp(np.log(num_draws), np.log(numbers), shares)
    return usual
