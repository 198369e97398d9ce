"""Counts by numbers too large for a table, in memory that depends on the distinct ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass
class SparseCounts:
    """Counts of how often each key occurred."""

    _keys: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _counts: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _pending: list[tuple[Ints, Ints]] = field(default_factory=list)
    _num_pending: int = 0

    def add(self, keys: Ints) -> None:
        """Count keys, each as often as it occurs."""
        distinct, counts = np.unique(keys, return_counts=True)
        self._pending.append((distinct, counts))
        self._num_pending += len(distinct)
        # Merging only when as much is new as is known keeps the cost of all merges small.
        if self._num_pending > len(self._keys):
            self._merge()

    def join(self, other: SparseCounts) -> None:
        """Add the counts of another."""
        keys, counts = other.collect()
        self._pending.append((keys, counts))
        self._num_pending += len(keys)
        self._merge()

    @property
    def num_cells(self) -> int:
        """Keys in memory, of which some may be equal."""
        return len(self._keys) + self._num_pending

    def keep(self, is_kept: NDArray[np.bool_]) -> None:
        """Forget keys; see `collect` for their order."""
        self._keys, self._counts = self._keys[is_kept], self._counts[is_kept]

    def collect(self) -> tuple[Ints, Ints]:
        """Return the distinct keys in ascending order, and their counts."""
        self._merge()
        return self._keys, self._counts

    def _merge(self) -> None:
        if not self._pending:
            return
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
        self._keys, index = np.unique(keys, return_inverse=True)
        self._counts = np.zeros(len(self._keys), dtype=np.int64)
        np.add.at(self._counts, index, counts)
        self._pending, self._num_pending = [], 0
