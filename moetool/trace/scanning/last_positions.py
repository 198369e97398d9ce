"""The last position seen of each (prompt, stack, layer)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1024


class LastPositions:
    """A map from keys to positions, as two arrays in the order of the keys."""

    def __init__(self) -> None:
        self._num_keys = 0
        self._keys = np.zeros(_SMALLEST, dtype=np.int64)
        self._positions = np.zeros(_SMALLEST, dtype=np.int64)

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the last position of each key, -1 for a new one."""
        place, is_known = self._find_places(keys)
        last = np.full(len(keys), -1, dtype=np.int64)
        last[is_known] = self._positions[place[is_known]]
        return last

    def record(self, keys: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Record positions of keys that are all different."""
        place, is_known = self._find_places(keys)
        self._positions[place[is_known]] = positions[is_known]
        if is_known.all():
            return
        keys, positions, place = keys[~is_known], positions[~is_known], place[~is_known]
        order = np.argsort(keys)
        keys, positions, place = keys[order], positions[order], place[order]
        start, end = self._num_keys, self._num_keys + len(keys)
        if end > len(self._keys):
            self._keys, self._positions = _grow(self._keys, end), _grow(self._positions, end)
        if place[0] == start:  # Behind all others, as in a trace in order: nothing moves.
            self._keys[start:end], self._positions[start:end] = keys, positions
        else:
            self._keys[:end] = np.insert(self._keys[:start], place, keys)
            self._positions[:end] = np.insert(self._positions[:start], place, positions)
        self._num_keys = end

    def _find_places(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        known = self._keys[: self._num_keys]
        place = np.searchsorted(known, keys)
        is_known = np.zeros(len(keys), dtype=bool)
        inside = place < len(known)
        is_known[inside] = known[place[inside]] == keys[inside]
        return place, is_known


def _grow(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the values with room for at least a size, and for as many again as there are."""
    return np.concatenate([values, np.zeros(max(size - len(values), len(values)), dtype=np.int64)])
