"""Tables of a trace as rows of windows: prompts, layers, groups and words as numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moetool.trace.decisions import NO_DOMAIN, PHASES
from moetool.trace.metadata import RoutedLayer
from moetool.trace.scanning.columns import WordColumn, find_changes, take_words
from moetool.trace.windows.prompt_order import PromptOrder
from moetool.trace.windows.window_rows import WindowRows, take_runs

_DOMAIN = "domain"
# A token id of a row that has none.
_NO_TOKEN_ID = -1


class TableRows:
    """Turns tables into rows of windows.

    Attributes:
        domains: Domain of each prompt seen so far.
        groups: Values of the grouping column seen so far.
        pieces: Words of the column `token` seen so far.

    Args:
        order: The prompts of the trace.
        by: Column that groups the tokens.
        columns: Optional columns to take where a table has them.
    """

    def __init__(self, order: PromptOrder, *, by: str, columns: Collection[str]) -> None:
        self.domains: list[str] = [NO_DOMAIN] * len(order.prompts)
        self.groups: list[str] = []
        self.pieces: list[str] = []
        self._order = order
        self._by, self._columns = by, columns
        self._group_index: dict[str, int] = {}
        self._piece_index: dict[str, int] = {}

    def take(self, table: pa.Table, layers: Sequence[RoutedLayer]) -> WindowRows:
        """Return the rows of a table with at least one row; `place` is -1 for other layers."""
        words = {name: take_words(table, name) for name in ("prompt_id", _DOMAIN, "stack")}
        group = _take_any_words(table, self._by) if self._by in table.column_names else None
        layer = table.column("layer").to_numpy()
        starts = np.flatnonzero(
            find_changes(
                *(column.codes for column in words.values()),
                None if group is None else group.codes,
                layer,
            )
        )
        names, prompt = words["prompt_id"].find(starts)
        prompt = self._order.index_of(names)[prompt]
        domains, domain = words[_DOMAIN].find(starts)
        pairs = np.unique(np.stack([prompt, domain]), axis=1)
        for one, code in pairs.T:
            self.domains[one] = domains[code]
        stacks, stack = words["stack"].find(starts)
        groups, of_group = (words[_DOMAIN] if group is None else group).find(starts)
        return WindowRows(
            prompt=prompt,
            place=_find_places(stacks, stack, layer[starts], layers),
            group=_register(groups, self._group_index, self.groups)[of_group],
            size=np.diff(starts, append=table.num_rows),
            position=table.column("position").to_numpy(),
            expert=table.column("expert").to_numpy(),
            rank=_take_numbers(table, "rank"),
            weight=_take_numbers(table, "weight") if "weight" in self._columns else None,
            token_id=_take_numbers(table, "token_id") if "token_id" in self._columns else None,
            phase=_take_phases(table) if "phase" in self._columns else None,
            piece=self._take_pieces(table) if "token" in self._columns else None,
        )

    def _take_pieces(self, table: pa.Table) -> NDArray[np.int32]:
        column = _take_any_words(table, "token")
        words = column.dictionary.to_pylist()
        index = _register(words, self._piece_index, self.pieces).astype(np.int32)
        return _spread(index, column, table.num_rows)


def drop_runs(rows: WindowRows, is_kept: NDArray[np.bool_]) -> WindowRows:
    """Return the runs that are kept."""
    return rows if is_kept.all() else take_runs([rows], np.flatnonzero(is_kept))


def _find_places(
    stacks: Sequence[str],
    stack: NDArray[np.intp],
    layer: NDArray[np.int16],
    layers: Sequence[RoutedLayer],
) -> NDArray[np.int64]:
    """Return the index of each run's layer among those that are read; -1 for others."""
    width = int(layer.max()) + 1
    of_place = np.full((len(stacks), width), -1, dtype=np.int64)
    for index, known in enumerate(layers):
        if known.stack in stacks and known.layer < width:
            of_place[stacks.index(known.stack), known.layer] = index
    places: NDArray[np.int64] = of_place[stack, layer]
    return places


def _register(words: Sequence[str], index: dict[str, int], known: list[str]) -> NDArray[np.int64]:
    """Return the index of each word among those known, after adding new ones."""
    for word in words:
        if word not in index:
            index[word] = len(known)
            known.append(word)
    return np.array([index[word] for word in words], dtype=np.int64)


def _take_any_words(table: pa.Table, name: str) -> WordColumn:
    """Return a column of any type as words; a missing value is `(none)`."""
    column = table.column(name)
    if column.null_count or not pa.types.is_dictionary(column.type):
        words = column.cast(pa.string()).fill_null(NO_DOMAIN).dictionary_encode()
        table = pa.table({name: words})
    return take_words(table, name)


def _take_numbers(table: pa.Table, name: str) -> NDArray[Any] | None:
    if name not in table.column_names:
        return None
    column = table.column(name)
    if column.null_count:
        column = pc.fill_null(column, _NO_TOKEN_ID)
    values: NDArray[Any] = column.to_numpy()
    return values


def _take_phases(table: pa.Table) -> NDArray[np.int8] | None:
    if "phase" not in table.column_names:
        return None
    column = _take_any_words(table, "phase")
    codes = [PHASES.index(word) if word in PHASES else -1 for word in column.dictionary.to_pylist()]
    return _spread(np.array(codes, dtype=np.int8), column, table.num_rows)


def _spread(values: NDArray[Any], column: WordColumn, num_rows: int) -> NDArray[Any]:
    """Return the value of each row, given that of each word."""
    if column.codes is None:
        return np.full(num_rows, values[0])
    spread: NDArray[Any] = values[column.codes]
    return spread
