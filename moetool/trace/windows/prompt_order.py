"""Order of a trace's prompts: whether it can be read once, or a group of prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.reading.reader import TraceSource
from moetool.trace.scanning.columns import find_changes, take_words

# Rows of prompts that have begun, held at a time: about 200 MB.
_ROWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class PromptOrder:
    """The prompts of a trace and the passes that read whole prompts.

    Attributes:
        prompts: In order of first occurrence.
        num_rows: Of each prompt, in all layers. # (num_prompts,)
        num_passes: Times that the file is read: more than once if too many prompts are begun at a
            time.
        pass_of: Pass that reads each prompt. # (num_prompts,)
    """

    prompts: Sequence[str]
    num_rows: NDArray[np.int64]
    num_passes: int
    pass_of: NDArray[np.int64]
    _index: dict[str, int] = field(repr=False)

    def index_of(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Return the index of each prompt."""
        return np.array([self._index[word] for word in words], dtype=np.int64)


def find_prompt_order(source: TraceSource) -> PromptOrder:
    """Return the order of a trace's prompts, from one pass over their ids.

    Raises:
        InputError: The ids can't be read.
    """
    index_of: dict[str, int] = {}
    seen: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for table in source.iter_tables(["prompt_id"]):
        if table.num_rows:
            index, number = _count_rows(table, index_of)
            seen.append((index, number))
    num_rows = np.zeros(len(index_of), dtype=np.int64)
    for index, number in seen:
        num_rows[index] += number
    num_passes = 1
    if _count_most_held(seen, num_rows) > max(_ROWS_AT_ONCE, int(num_rows.max(initial=0))):
        num_passes = -(-int(num_rows.sum()) // _ROWS_AT_ONCE)
    before = np.cumsum(num_rows) - num_rows
    return PromptOrder(
        prompts=tuple(index_of),
        num_rows=num_rows,
        num_passes=num_passes,
        pass_of=before * num_passes // max(1, int(num_rows.sum())),
        _index=index_of,
    )


def _count_rows(
    table: pa.Table, index_of: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the prompts of a table, as numbers that are given to new ones, and rows of each."""
    column = take_words(table, "prompt_id")
    starts = np.zeros(1, dtype=np.intp)
    if column.codes is not None:
        starts = np.flatnonzero(find_changes(column.codes))
    words, prompt = column.find(starts)
    number = np.zeros(len(words), dtype=np.int64)
    np.add.at(number, prompt, np.diff(starts, append=table.num_rows))
    # A dictionary may hold its words in any order.
    _, first = np.unique(prompt, return_index=True)
    order = np.argsort(first)
    index = [index_of.setdefault(words[code], len(index_of)) for code in order]
    return np.array(index, dtype=np.int64), number[order]


def _count_most_held(
    seen: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], num_rows: NDArray[np.int64]
) -> int:
    """Return the most rows of incomplete prompts after any table."""
    left = num_rows.copy()
    num_held = most = 0
    for index, number in seen:
        left[index] -= number
        num_held += int(number.sum()) - int(num_rows[index[left[index] == 0]].sum())
        most = max(most, num_held)
    return most
