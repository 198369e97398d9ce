"""Sizes that grow with a number of sequences or tokens, followed to numbers that were not seen."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.cuda_kernels import count_sort_bytes
from moetool.simulation.memory.steps.event_table import Numbers

# Kernels round lengths up to whole blocks of these.
_BLOCK_LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256)
# The sizes of an index, and of the keys that indices are sorted by.
_INDEX_BYTES = 8
_KEY_BYTES = (8, 4, 2, 1)
# A line through two points says nothing about what lies beyond them; masks and scores of attention
# grow with the square of the length.
_NUM_FOR_SQUARES = 3


def expect_sizes(
    numbers: Sequence[int], sizes: Numbers, number: int
) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the sizes at another number, and which of them don't follow from those seen.

    Each size is taken to grow linearly, or linearly with the number rounded up to whole blocks, or
    with its square: whichever is the first to agree with all that was seen.

    Args:
        numbers: The numbers seen, all different.
        sizes: The sizes at each of them.  # (len(numbers), num_sizes)
        number: The number that wasn't seen.
    """
    expected, is_unknown = sizes[0].copy(), np.zeros(sizes.shape[1], np.bool_)
    changing = np.flatnonzero((sizes != expected).any(axis=0))
    if not len(changing):
        return expected, is_unknown
    # Most sizes are those of many layers.
    patterns, kinds = np.unique(sizes[:, changing], axis=1, return_inverse=True)
    found = [_expect_size(numbers, pattern, number) for pattern in patterns.T.tolist()]
    known = np.array([-1 if size is None else size for size in found], np.int64)
    expected[changing] = known[kinds.ravel()]
    is_unknown[changing] = expected[changing] < 0
    return expected, is_unknown


def expect_sort_sizes(indices: Numbers, sizes: Numbers, expected_indices: int) -> int | None:
    """Return the temporary memory of a sort; None if it isn't that of a radix sort of one row.

    Args:
        indices: Sizes of the sorted indices seen.
        sizes: The temporary memory of each of those sorts.
        expected_indices: The size of the indices in question.
    """
    rows = [size // _INDEX_BYTES for size in indices.tolist()]
    for key_bytes in _KEY_BYTES:
        if [count_sort_bytes(num_rows, key_bytes) for num_rows in rows] == sizes.tolist():
            return count_sort_bytes(expected_indices // _INDEX_BYTES, key_bytes)
    return None


def _expect_size(numbers: Sequence[int], sizes: Sequence[int], number: int) -> int | None:
    size = _follow_line(numbers, sizes, number)
    for length in _BLOCK_LENGTHS:
        if size is not None:
            return size
        *blocks, block = (-(-each // length) * length for each in (*numbers, number))
        size = _follow_line(blocks, sizes, block)
    return _follow_square(numbers, sizes, number) if size is None else size


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
    """Return the size on the parabola through all points, as `_follow_line` does."""
    if len(numbers) < _NUM_FOR_SQUARES:
        return None
    points = list(zip(numbers, sizes, strict=True))[:_NUM_FOR_SQUARES]

    def follow(at: int) -> Fraction:
        total = Fraction(0)
        for each, size in points:
            share = Fraction(size)
            for other, _ in points:
                if other != each:
                    share *= Fraction(at - other, each - other)
            total += share
        return total

    if any(follow(each) != size for each, size in zip(numbers, sizes, strict=True)):
        return None
    found = follow(number)
    return int(found) if found.denominator == 1 and found >= 0 else None
