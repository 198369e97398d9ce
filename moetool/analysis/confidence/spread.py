"""Percentiles of positive numbers that come in parts, in memory that their number doesn't change."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.confidence.result import PERCENTILES, Distribution

# A float32 without its last 12 bits has 11 bits after the first one: neighbours differ by at most
# a part in 2,048.
_DROPPED_BITS = 12
_LEAST, _MOST = 2.0**-24, 2.0**8


def _find_bin(values: NDArray[np.float32]) -> NDArray[np.int64]:
    kept: NDArray[np.int64] = (values.view(np.uint32) >> _DROPPED_BITS).astype(np.int64)
    return kept


_FIRST, _LAST = _find_bin(np.array([_LEAST, _MOST], dtype=np.float32)).tolist()


class Spread:
    """Collects numbers, such as the largest weights of decisions, and returns their distribution.

    Numbers below 2**-24 count as 2**-24, those above 2**8 as 2**8.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_LAST - _FIRST + 1, dtype=np.int64)
        self._sum = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count numbers: (num_values,)."""
        place = _find_bin(np.clip(values, _LEAST, _MOST)) - _FIRST
        self._counts += np.bincount(place, minlength=len(self._counts))
        self._sum += float(values.sum(dtype=np.float64))

    def describe(self) -> Distribution | None:
        """Return the distribution of the numbers so far; None if there are none."""
        below = np.cumsum(self._counts)
        number = int(below[-1])
        if not number:
            return None
        ranks = [max(1, math.ceil(percent * number / 100)) for percent in PERCENTILES]
        bits = np.searchsorted(below, ranks) + _FIRST
        floors = (bits.astype(np.uint32) << _DROPPED_BITS).view(np.float32)
        return Distribution(self._sum / number, *floors.tolist())
