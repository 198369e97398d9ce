"""Improve a division of items into parts of equal size by swapping pairs of items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A part may exceed the mean load by this much, or keep what it has.
_SLACK = 0.05
# Affinities add up to about 1; smaller gains are rounding.
_LEAST_GAIN = 1e-9


def improve_by_swaps(
    affinity: NDArray[np.float64],
    load: NDArray[np.float64],
    part: NDArray[np.int64],
    *,
    mean_load: float,
) -> NDArray[np.int64]:
    """Return the part of each item after the best swaps, one by one, until none is better.

    A swap raises the sum of affinities within parts. It is allowed if neither part ends above 1.05
    times the mean load, or above the load that it had.

    Args:
        affinity: Symmetric, 0 on the diagonal. # (num_items, num_items)
        load: Of each item. # (num_items,)
        part: Of each item, from 0; every part has the same number of items. # (num_items,)
        mean_load: Mean load of a part.

    Returns:
        # (num_items,)
    """
    search = _SwapSearch(affinity, load, part.copy(), limit=(1 + _SLACK) * mean_load)
    while search.swap_best_pair():
        pass
    return search.part


class _SwapSearch:
    """The gain of every swap, kept up to date: a swap changes only the rows of two parts."""

    def __init__(
        self,
        affinity: NDArray[np.float64],
        load: NDArray[np.float64],
        part: NDArray[np.int64],
        *,
        limit: float,
    ) -> None:
        self.part = part
        self._affinity = affinity
        self._load = load
        self._limit = limit
        # Sums of two loads that are equal on paper may differ by rounding.
        self._rounding = 1e-9 * limit
        self._totals = np.bincount(part, weights=load)
        # Affinity of each item to each part. # (num_items, num_parts)
        self._to_part = affinity @ np.eye(len(self._totals))[part]
        self._gain = self._compute_gain(np.arange(len(part)))

    def swap_best_pair(self) -> bool:
        """Make the best swap; return False, and change nothing, if none is better than nothing."""
        first, second = divmod(int(self._gain.argmax()), len(self.part))
        if not self._gain[first, second] > _LEAST_GAIN:
            return False
        here, there = int(self.part[first]), int(self.part[second])
        moved = self._affinity[:, second] - self._affinity[:, first]
        self._to_part[:, here] += moved
        self._to_part[:, there] -= moved
        difference = self._load[second] - self._load[first]
        self._totals[here] += difference
        self._totals[there] -= difference
        self.part[first], self.part[second] = there, here
        (rows,) = np.nonzero((self.part == here) | (self.part == there))
        gain = self._compute_gain(rows)
        self._gain[rows] = gain
        self._gain[:, rows] = gain.T
        return True

    def _compute_gain(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the gain of swapping some items with every item; -inf where it isn't allowed.

        Returns:
            # (num_rows, num_items)
        """
        part, load = self.part, self._load
        mine = part[rows]
        own = self._to_part[np.arange(len(part)), part]
        gain: NDArray[np.float64] = (
            self._to_part[rows][:, part]
            + self._to_part[:, mine].T
            - own[rows, None]
            - own
            - 2 * self._affinity[rows]
        )
        most = np.maximum(self._limit, self._totals) + self._rounding
        change = load - load[rows, None]
        is_refused = change > (most - self._totals)[mine][:, None]
        is_refused |= -change > (most - self._totals)[part]
        is_refused |= mine[:, None] == part
        gain[is_refused] = -np.inf
        return gain
