"""Words of a table as numbers: the index of each row's word among those that occur."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def encode_words(
    table: pa.Table, name: str, *, default: str
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the words that occur in a column, and each row's index into them.

    Args:
        table: Table with at least one row.
        name: Name of a dictionary-encoded column.
        default: Word of every row if there is no such column.
    """
    if name not in table.column_names:
        return [default], np.zeros(table.num_rows, dtype=np.int64)
    column = table.column(name).unify_dictionaries().combine_chunks()
    codes = column.indices.to_numpy().astype(np.int64)
    occurs = np.bincount(codes, minlength=len(column.dictionary)) > 0
    if occurs.all():
        return column.dictionary.to_pylist(), codes
    words = column.dictionary.filter(pa.array(occurs)).to_pylist()
    return words, (np.cumsum(occurs) - 1)[codes]


def count_values(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct values of non-negative numbers, and how often each occurs."""
    # Counting is ten times as fast as sorting, but needs room for every number up to the largest.
    if int(values.max(initial=0)) <= 4 * len(values) + 1000:
        counts = np.bincount(values)
        (distinct,) = np.nonzero(counts)
        return distinct, counts[distinct]
    distinct, number = np.unique(values, return_counts=True)
    return distinct, number
