"""Experts that policies without knowledge of the future find on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.steps import Requests

# Experts times steps whose priorities are held at a time.
_CELLS_AT_ONCE = 2**17


class OnlineCaches:
    """Caches of one layer that keep the experts of the highest priority, at several capacities.

    LRU keeps those that were used last, LFU those that were used by most tokens so far; of equally
    frequent ones, those that were used last. An expert that is not on the GPU is moved there when it
    is needed, and stays if its priority is among the highest. A cache therefore always holds the
    experts of the highest priority among all that were used, at any capacity (Mattson et al. 1970,
    IBM Systems Journal 9:78).

    Attributes:
        capacities: Experts that each cache keeps, in ascending order.
    """

    def __init__(self, num_experts: int, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self._num_experts = num_experts
        # The order in which experts were used last: 0 for never. # (num_experts,)
        self._recency = np.zeros(num_experts, dtype=np.int64)
        self._frequency = np.zeros(num_experts, dtype=np.int64)

    def count_hits(
        self, requests: Requests, num_steps: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return in how many of the caches each request finds its expert, for LRU and for LFU.

        Args:
            requests: Of the layer, in the steps after those before.
            num_steps: Steps of the window.

        Returns:
            # (num_requests,) each
        """
        lru, lfu = (np.zeros(len(requests.step), dtype=np.int64) for _ in range(2))
        size = max(1, _CELLS_AT_ONCE // self._num_experts)
        for start in range(0, num_steps, size):
            bounds = (start, min(start + size, num_steps))
            first, last = np.searchsorted(requests.step, bounds)
            use = slice(*np.searchsorted(requests.uses, bounds))
            recency, frequency = self._advance(
                requests.uses[use] - start, requests.used[use], bounds[1] - start
            )
            step, expert = requests.step[first:last] - start, requests.expert[first:last]
            lru[first:last] = self._count(recency, step, expert)
            # Frequency decides, then recency, which is smaller than any step of the frequency.
            both = frequency * (1 + int(recency.max(initial=0))) + recency
            lfu[first:last] = self._count(both, step, expert)
        return lru, lfu

    def _advance(
        self, step: NDArray[np.int64], expert: NDArray[np.int64], num_steps: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return recency and frequency before each step, and remember those after the last.

        Returns:
            # (num_steps, num_experts) each; 0 for experts that were never used
        """
        shape = (num_steps + 1, self._num_experts)
        cell = (step + 1) * self._num_experts + expert
        # Ranks keep the order and stay small, however long the trace is.
        before = np.unique(self._recency, return_inverse=True)[1] + (self._recency.min() > 0)
        recency = np.zeros(shape, dtype=np.int32)
        # Of several uses in a step, the last one counts.
        first = self._num_experts + 1
        recency.ravel()[cell] = np.arange(first, first + len(cell), dtype=np.int32)
        recency[0] = before
        np.maximum.accumulate(recency, axis=0, out=recency)
        frequency = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        frequency[0] = self._frequency
        np.cumsum(frequency, axis=0, out=frequency)
        self._recency, self._frequency = recency[-1].copy(), frequency[-1].copy()
        return recency[:-1], frequency[:-1]

    def _count(
        self, priority: NDArray[Any], step: NDArray[np.int64], expert: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the number of caches that hold each expert, given all priorities by step."""
        # Sorting all is faster than selecting several places.
        ordered = np.sort(priority, axis=1)
        mine = priority[step, expert]
        number = np.zeros(len(step), dtype=np.int64)
        for capacity in self.capacities:
            least = ordered[:, max(0, self._num_experts - capacity)]
            number += mine >= least[step]
        # Experts that were never used are nowhere.
        number[mine == 0] = 0
        return number
