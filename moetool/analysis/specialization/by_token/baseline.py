"""The favourite expert's share by chance: that of routers that ignore the token.

The largest of several counts grows with their number and falls with the occurrences: of 10
occurrences, even a fair router gives some expert 4. There is no simple formula, so routers are
simulated: each run is a series of decisions, and the largest count after n of them is that of a
token id with n occurrences.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_NUM_RUNS = 200
# Beyond these occurrences, what chance adds falls with their square root.
_MOST_SIMULATED = 512


class Draw:
    """Draws decisions of a router that ignores the token.

    Args:
        decisions: Those to draw from; None for a uniform random router. # (num_decisions, top_k)
    """

    def __init__(
        self,
        decisions: NDArray[np.int64] | None,
        *,
        num_experts: int,
        top_k: int,
        seed: int,
    ) -> None:
        self._decisions, self._num_experts, self._top_k = decisions, num_experts, top_k
        self._rng = np.random.default_rng([seed, 6])

    def __call__(self, num_runs: int, length: int) -> NDArray[np.int64]:
        """Return decisions of several runs, each `length` long.

        Returns:
            # (num_runs, length, top_k)
        """
        if self._decisions is not None:
            index = self._rng.integers(0, len(self._decisions), size=(num_runs, length))
            drawn: NDArray[np.int64] = self._decisions[index]
            return drawn
        scores = self._rng.random((num_runs, length, self._num_experts), dtype=np.float32)
        if self._top_k == self._num_experts:
            return scores.argsort(axis=2)
        return scores.argpartition(self._top_k, axis=2)[..., : self._top_k]


class FavouriteShares:
    """The expected share of the favourite expert, by occurrences.

    Args:
        draw: Returns decisions of a number of runs: # (num_runs, num_occurrences, top_k).
            Negative experts did not run.
        num_experts: Larger than each id.
        limit: The share for infinitely many occurrences.
        most: The largest number of occurrences that is asked for.
    """

    def __init__(self, draw: Draw, *, num_experts: int, limit: float, most: int) -> None:
        self._limit = limit
        length = max(1, min(most, _MOST_SIMULATED))
        experts = draw(_NUM_RUNS, length)
        run = np.arange(_NUM_RUNS)[:, None]
        # The last column takes those that did not run.
        column = np.where(experts < 0, num_experts, experts)
        counts = np.zeros((_NUM_RUNS, num_experts + 1), dtype=np.int64)
        largest = np.zeros((_NUM_RUNS, length), dtype=np.int64)
        for step in range(length):
            counts[run, column[:, step]] += 1
            counts[:, num_experts] = 0
            # Counts only grow, so the largest is a new one or the one before.
            largest[:, step] = np.maximum(
                largest[:, step - 1], counts[run, column[:, step]].max(axis=1)
            )
        self._shares = largest.mean(axis=0) / np.arange(1, length + 1)

    def mean(self, occurrences: NDArray[np.int64]) -> float:
        """Return the mean over token ids with these occurrences, at least one each."""
        length = len(self._shares)
        shares = self._shares[np.minimum(occurrences, length) - 1]
        beyond = np.sqrt(np.minimum(1, length / occurrences))
        return float((self._limit + (shares - self._limit) * beyond).mean())


@cache
def simulate_uniform(num_experts: int, top_k: int, seed: int) -> FavouriteShares:
    """Return the shares for a uniform random router, simulated once for all layers alike."""
    return FavouriteShares(
        Draw(None, num_experts=num_experts, top_k=top_k, seed=seed),
        num_experts=num_experts,
        limit=top_k / num_experts,
        most=_MOST_SIMULATED,
    )
