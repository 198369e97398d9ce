"""The columns of a table as arrays of the width that they are stored in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.decisions import NO_DOMAIN

# Words, and the index of each row's or run's word among them.
CodedWords = tuple[Sequence[str], NDArray[np.intp]]

# Words of the rows of a table without the column.
_DEFAULTS = {"prompt_id": "", "domain": NO_DOMAIN, "stack": "decoder"}


@dataclass(frozen=True)
class WordColumn:
    """A column of words.

    Attributes:
        dictionary: Its words, each once; some may not occur.
        codes: Index of each row's word; None if every row has the first. # (num_rows,)
    """

    dictionary: pa.Array
    codes: NDArray[np.int32] | None

    def find(self, rows: NDArray[np.intp]) -> CodedWords:
        """Return the words of some rows, in the dictionary's order, and the index of each row's."""
        if self.codes is None:
            return [self.dictionary[0].as_py()], np.zeros(len(rows), dtype=np.intp)
        codes, index = np.unique(self.codes[rows], return_inverse=True)
        return self.dictionary.take(pa.array(codes)).to_pylist(), index


def take_words(table: pa.Table, name: str) -> WordColumn:
    """Return a dictionary-encoded column of a table with at least one row.

    A table without a column `domain` or `stack` has the same one in each row.
    """
    if name not in table.column_names:
        return WordColumn(pa.array([_DEFAULTS[name]]), None)
    column = table.column(name)
    one = column.num_chunks == 1
    chunk = column.chunk(0) if one else column.unify_dictionaries().combine_chunks()
    if len(chunk.dictionary) == 1:
        return WordColumn(chunk.dictionary, None)
    return WordColumn(chunk.dictionary, chunk.indices.to_numpy())


def take_numbers(table: pa.Table, name: str) -> NDArray[Any] | None:
    """Return a column of numbers with the type of the schema; None if the table lacks it."""
    return table.column(name).to_numpy() if name in table.column_names else None


def find_changes(*values: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Return which rows differ from the one before in any of several arrays; the first row does.

    Args:
        values: At least one array; None stands for a column without changes. # (num_rows,)
    """
    num_rows = next(len(value) for value in values if value is not None)
    changes = np.zeros(num_rows, dtype=bool)
    changes[:1] = True
    for value in values:
        if value is not None:
            changes[1:] |= value[1:] != value[:-1]
    return changes
