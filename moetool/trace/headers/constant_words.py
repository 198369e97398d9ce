"""Columns of a Parquet file with one word in every row, which need not be read."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moetool.trace.headers.column_parts import read_statistics

# Statistics may cut longer words, so that different ones look equal.
_LONGEST_WORD = 24
# Those that may be constant in a long trace.
_NAMES = ("domain", "phase", "stack")


def find_constant_words(parquet: pq.ParquetFile, columns: Collection[str]) -> dict[str, str]:
    """Return the columns whose statistics say that every row has the same word, with that word.

    At least one of the columns is left to be read.

    Args:
        parquet: The open file.
        columns: Names of the columns asked for.

    Raises:
        ArrowException: The file is damaged.
        OSError: It is damaged, or can't be read.
    """
    metadata = parquet.metadata
    paths = {metadata.schema.column(index).path for index in range(metadata.num_columns)}
    found = {}
    for name in _NAMES:
        if name in columns and name in paths:
            words = {
                _find_only_word(read_statistics(parquet, name, group=group))
                for group in range(metadata.num_row_groups)
            }
            word = words.pop() if len(words) == 1 else None
            if word is not None:
                found[name] = word
    return found if len(found) < len(columns) else {}


def repeat_word(word: str, num_rows: int) -> pa.DictionaryArray:
    """Return a column with one word."""
    return pa.DictionaryArray.from_arrays(
        np.zeros(num_rows, dtype=np.int32), pa.array([word], type=pa.string())
    )


def _find_only_word(statistics: pq.Statistics | None) -> str | None:
    """Return the word of every row of a column's part; None if there may be several."""
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count:
        return None
    if statistics.null_count or not statistics.num_values:
        return None
    try:
        low, high = statistics.min, statistics.max
    except ValueError:  # Not UTF-8: reading the column says so.
        return None
    is_word = isinstance(low, str) and low == high and len(low.encode()) <= _LONGEST_WORD
    return low if is_word else None
