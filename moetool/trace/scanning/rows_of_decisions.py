"""Rows grouped by decision, and the checks that the rows of each must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Decisions with more rows are compared by sorting; those with fewer, row by row.
_FEW_ROWS = 64


@dataclass(frozen=True)
class Rows:
    """Rows of a trace as numbers; each array has one entry for each row.

    Attributes:
        key: One number for each (prompt, stack, layer).
        position: As in the trace's column; expert, rank and weight, too.
        file: Index of the file that holds the row.
        is_carried: Whether the row was carried over from before the latest table.
    """

    key: NDArray[np.int64]
    position: NDArray[np.int64]
    expert: NDArray[np.int64]
    rank: NDArray[np.int64] | None
    weight: NDArray[np.float32] | None
    file: NDArray[np.int32]
    is_carried: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.key)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        """Return the rows at an index, or where a mask is true."""
        taken: dict[str, Any] = {}
        for item in fields(self):
            column = getattr(self, item.name)
            taken[item.name] = None if column is None else column[index]
        return Rows(**taken)

    def carry(self) -> Rows:
        """Return the rows marked as carried."""
        return replace(self, is_carried=np.ones(len(self), dtype=bool))

    def group(self) -> Rows:
        """Return the rows grouped by key, otherwise in their order."""
        starts = find_starts(self.key)
        if len(np.unique(self.key[starts])) == len(starts):
            return self
        return self.take(np.argsort(self.key, kind="stable"))

    def sort(self) -> Rows:
        """Return the rows sorted by key and position, otherwise in their order."""
        return self.take(np.lexsort((self.position, self.key)))


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several parts, one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for item in fields(Rows):
        columns = [getattr(part, item.name) for part in parts]
        joined[item.name] = None if columns[0] is None else np.concatenate(columns)
    return Rows(**joined)


def find_starts(*values: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return where runs of equal values begin; with several arrays, where a run of any begins."""
    changes = np.zeros(len(values[0]), dtype=bool)
    changes[:1] = True
    for value in values:
        changes[1:] |= value[1:] != value[:-1]
    return np.flatnonzero(changes)


@dataclass(frozen=True)
class Fault:
    """A fault of a decision.

    Attributes:
        row: Index of one of its rows.
        other: Index of a row that conflicts with it; else the same row.
        words: The fault, worded to follow the name of the file.
    """

    row: int
    other: int
    words: str

    @property
    def is_repeated(self) -> bool:
        """Whether something occurs twice."""
        return self.row != self.other


def find_fault(rows: Rows, starts: NDArray[np.intp]) -> Fault | None:
    """Return the first fault of decisions whose rows lie together; None if there is none.

    The experts of a decision are distinct, its ranks are 0, 1, 2, …, and rank 0 has the largest
    weight.

    Args:
        rows: At least one.
        starts: Index of the first row of each decision.
    """
    sizes = np.diff(starts, append=len(rows))
    decision = np.repeat(np.arange(len(starts)), sizes)  # (num_rows,)
    return (
        _find_repeated_expert(rows, decision, most=int(sizes.max()))
        or _find_wrong_rank(rows, decision, starts)
        or _find_wrong_first(rows, starts)
    )


def _find_repeated_expert(rows: Rows, decision: NDArray[np.intp], *, most: int) -> Fault | None:
    expert, ran = rows.expert, rows.expert >= 0
    if most <= _FEW_ROWS:
        for distance in range(1, most):
            same = (expert[distance:] == expert[:-distance]) & ran[distance:]
            same &= decision[distance:] == decision[:-distance]
            if same.any():
                first = int(same.argmax())
                return _repeats_expert(rows, first, first + distance)
        return None
    order = np.lexsort((expert, decision))
    same = (expert[order][1:] == expert[order][:-1]) & ran[order][1:]
    same &= decision[order][1:] == decision[order][:-1]
    if not same.any():
        return None
    first = int(same.argmax())
    return _repeats_expert(rows, *sorted((int(order[first]), int(order[first + 1]))))


def _repeats_expert(rows: Rows, first: int, second: int) -> Fault:
    return Fault(second, first, f"has expert {rows.expert[second]} twice for one decision")


def _find_wrong_rank(
    rows: Rows, decision: NDArray[np.intp], starts: NDArray[np.intp]
) -> Fault | None:
    if rows.rank is None:
        return None
    expected = np.arange(len(rows)) - starts[decision]
    if np.array_equal(rows.rank, expected):
        return None
    order = np.lexsort((rows.rank, decision))
    is_wrong = rows.rank[order] != expected
    if not is_wrong.any():
        return None
    wrong = int(is_wrong.argmax())
    row, before = int(order[wrong]), int(order[max(0, wrong - 1)])
    rank = int(rows.rank[row])
    if expected[wrong] and rank == rows.rank[before]:
        return Fault(row, before, f"has rank {rank} twice for one decision")
    words = f"has rank {rank} of a decision, but not its rank {expected[wrong]}"
    return Fault(row, row, words)


def _find_wrong_first(rows: Rows, starts: NDArray[np.intp]) -> Fault | None:
    if rows.rank is None or rows.weight is None:
        return None
    (first,) = np.nonzero(rows.rank == 0)  # One for each decision: ranks were checked.
    is_wrong = rows.weight[first] < np.maximum.reduceat(rows.weight, starts)
    if not is_wrong.any():
        return None
    row = int(first[is_wrong.argmax()])
    return Fault(row, row, f"has a larger weight than that of rank 0, {rows.weight[row]:.4g}")
