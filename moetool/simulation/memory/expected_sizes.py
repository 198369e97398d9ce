"""Sizes that grow with a number of sequences or tokens, followed to numbers that were not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.cuda_kernels import count_sort_bytes
from moetool.simulation.memory.steps.event_table import Numbers

# Kernels and models work in whole blocks of these.
_BLOCK_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# The sizes of an index, and of the keys that indices are sorted by.
_INDEX_BYTES = 8
_KEY_BYTES = (8, 4, 2, 1)
# A line through two points says nothing about what lies beyond them; masks and scores of attention
# grow with the square of the length.
_NUM_FOR_SQUARES = 3


class SeenSizes:
    """Sizes at several numbers, from which those at others are expected.

    Args:
        numbers: The numbers seen, all different.
        sizes: The sizes at each of them.  # (len(numbers), num_sizes)
        sorts: The indices of temporary memory that sorts take, each after the indices it sorts.
    """

    def __init__(
        self, numbers: Sequence[int], sizes: Numbers, *, sorts: Sequence[int] = ()
    ) -> None:
        self._numbers = numbers
        self._constant = sizes[0]
        self._changing = np.flatnonzero((sizes != sizes[0]).any(axis=0))
        # Most sizes are those of many layers: each course is followed once.
        courses: dict[tuple[int, ...], int] = {}
        columns = zip(*sizes[:, self._changing].tolist(), strict=True)
        kinds = [courses.setdefault(column, len(courses)) for column in columns]
        self._kinds = np.array(kinds, np.intp)
        self._courses = list(courses)
        self._sorts: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for place in sorts:
            indices, course = (tuple(sizes[:, at].tolist()) for at in (place - 1, place))
            self._sorts.setdefault((indices, course), []).append(place)

    def expect(self, number: int) -> tuple[Numbers, NDArray[np.bool_]]:
        """Return the sizes at another number, and which of them don't follow from those seen.

        Each size is taken to grow linearly with the number or with how many blocks it fills, or
        with the square of either, or as one of several equal shares: whichever is the first to
        agree with all that was seen. Temporary memory of sorts is taken from their kernel.
        """
        found = [_expect_size(self._numbers, course, number) for course in self._courses]
        known = np.array([-1 if size is None else size for size in found], np.int64)
        expected, is_unknown = self._constant.copy(), np.zeros(len(self._constant), np.bool_)
        expected[self._changing] = known[self._kinds]
        is_unknown[self._changing] = expected[self._changing] < 0
        for (indices, course), places in self._sorts.items():
            # A few sorts of similar length let mistake this for a line.
            size = expect_sort_sizes(indices, course, int(expected[places[0] - 1]))
            if size is not None:
                expected[places], is_unknown[places] = size, False
        return expected, is_unknown


def expect_sort_sizes(
    indices: Sequence[int], sizes: Sequence[int], expected_indices: int
) -> int | None:
    """Return the temporary memory of a sort; None if it isn't that of a radix sort of one row.

    Args:
        indices: Sizes of the sorted indices seen.
        sizes: The temporary memory of each of those sorts.
        expected_indices: The size of the indices in question; -1 if it is unknown.
    """
    if expected_indices < 0:
        return None
    rows = [size // _INDEX_BYTES for size in indices]
    for key_bytes in _KEY_BYTES:
        if [count_sort_bytes(num_rows, key_bytes) for num_rows in rows] == list(sizes):
            return count_sort_bytes(expected_indices // _INDEX_BYTES, key_bytes)
    return None


def _expect_size(numbers: Sequence[int], sizes: Sequence[int], number: int) -> int | None:
    for follow in (_follow_line, _follow_square):
        for length in _BLOCK_LENGTHS:
            *blocks, block = (-(-each // length) for each in (*numbers, number))
            size = follow(blocks, sizes, block)
            if size is not None:
                return size
    return _follow_share(numbers, sizes, number)


def _follow_line(numbers: Sequence[int], sizes: Sequence[int], number: int) -> int | None:
    """Return the size on the line through all points; None without one, or between whole bytes."""
    first, last = min(numbers), max(numbers)
    if first == last:
        return None
    start, end = sizes[numbers.index(first)], sizes[numbers.index(last)]
    rise, run = end - start, last - first
    if any(
        (size - start) * run != (each - first) * rise
        for each, size in zip(numbers, sizes, strict=True)
    ):
        return None
    more, rest = divmod((number - first) * rise, run)
    return None if rest or start + more < 0 else start + more


def _follow_square(numbers: Sequence[int], sizes: Sequence[int], number: int) -> int | None:
    """Return the size on the parabola through all points, as `_follow_line` does.

    None if there are too few points, or if it isn't whole bytes at every whole number.
    """
    points = list(dict(zip(numbers, sizes, strict=True)).items())[:_NUM_FOR_SQUARES]
    if len(points) < _NUM_FOR_SQUARES:
        return None
    (a, size_a), (b, size_b), (c, size_c) = points

    def follow(at: int) -> tuple[int, int]:
        """Return the size in whole bytes, and what is left over."""
        total = (
            size_a * (at - b) * (at - c) * (b - c)
            - size_b * (at - a) * (at - c) * (a - c)
            + size_c * (at - a) * (at - b) * (a - b)
        )
        return divmod(total, (a - b) * (a - c) * (b - c))

    # If a parabola is whole at three successive numbers, it is whole at all.
    if any(follow(at)[1] for at in range(_NUM_FOR_SQUARES)) or any(
        follow(each)[0] != size for each, size in zip(numbers, sizes, strict=True)
    ):
        return None
    found, _ = follow(number)
    return found if found >= 0 else None


def _follow_share(numbers: Sequence[int], sizes: Sequence[int], number: int) -> int | None:
    """Return the size of the share that one of several receives who are served in turns.

    Of `steps * n` rows, one of `num_receivers` gets `(steps * n + start) // num_receivers`, where
    `start` depends on its turn. None if such shares don't explain all sizes, or if those leave
    `start` open and it matters.
    """
    unit = math.gcd(*sizes)
    points = [(each, size // max(unit, 1)) for each, size in zip(numbers, sizes, strict=True)]
    longest, share = max(points)
    for num_receivers in _BLOCK_LENGTHS:
        lowest, highest = num_receivers * share, num_receivers * (share + 1) - 1
        for steps in range(-(-(lowest - num_receivers + 1) // longest), highest // longest + 1):
            starts = [num_receivers * share - steps * each for each, share in points]
            start = max(0, *starts)
            end = min(0, *starts) + num_receivers - 1
            if start <= end:
                found = {(steps * number + at) // num_receivers for at in (start, end)}
                return found.pop() * unit if len(found) == 1 else None
    return None
