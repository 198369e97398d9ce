"""Decisions of a trace, read a window of whole prompts at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN, PHASES
from moetool.trace.facts import TraceFacts, describe_trace
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.layer_shapes import find_shapes
from moetool.trace.reading.reader import TraceSource
from moetool.trace.reading.words import encode_words
from moetool.trace.windows.prompt_order import PromptOrder, find_prompt_order
from moetool.trace.windows.window import (
    DecisionWindow,
    WindowRows,
    build_window,
    join_window_rows,
)

# Rows of complete prompts that make a window.
_ROWS_PER_WINDOW = 1_000_000
_DOMAIN = "domain"
_LAYERS_NAMED = 12


class DecisionReader:
    """Reads the decisions of a trace, a window of whole prompts at a time.

    Memory holds a window and the rows of prompts that have begun, at least those of the largest
    prompt. If the rows of most prompts are spread over the file, it is read once for each group of
    prompts.

    Attributes:
        layers: Those asked for that have rows, in the order of stack and layer.
        prompts: In order of first occurrence; known from the start.
        domains: Domain of each prompt seen so far.
        groups: Values of the grouping column seen so far.

    Args:
        source: The trace.
        by: Column that groups the tokens.
        layers: Layer numbers to read; None for all.
        num_experts: Routed experts per layer, for a trace without metadata; by default inferred.
        top_k: Assignments per decision, for a trace without metadata; by default inferred.
        columns: Columns to read where the trace has them: `weight`, `token_id`, `token`, `phase`.
        is_checked: Refuse rows that no trace has. Otherwise, they are read as they are.

    Raises:
        InputError: The trace holds no rows, fails a check, or contradicts the arguments.
        UsageError: There is no such column or layer.
    """

    def __init__(
        self,
        source: TraceSource,
        *,
        by: str = _DOMAIN,
        layers: Collection[int] | None = None,
        num_experts: int | None = None,
        top_k: int | None = None,
        columns: Collection[str] = (),
        is_checked: bool = True,
    ) -> None:
        if by not in source.columns and by != _DOMAIN:
            raise UsageError(
                f"'{printable(source.path)}' has no column '{printable(by, max_length=60)}' to "
                "group by.",
                hint=f"Its columns are {printable(', '.join(source.columns[:20]))}.",
            )
        self._source, self._by = source, by
        self._columns = tuple(name for name in columns if name in source.columns)
        self._is_checked = is_checked
        self._order: PromptOrder = find_prompt_order(source)
        if not self._order.prompts:
            raise InputError(
                f"'{printable(source.path)}' holds no rows.",
                hint="Trace at least one prompt."
                if source.table is None
                else "Give a frame with the rows of at least one prompt.",
            )
        self.prompts = list(self._order.prompts)
        self.domains: list[str] = [NO_DOMAIN] * len(self.prompts)
        self.groups: list[str] = []
        self._group_index: dict[str, int] = {}
        self._notes: tuple[str, ...] = ()
        self._num_experts, self._top_k = num_experts, top_k
        # The scan that checks the rows: finished, unless it comes with the first pass.
        self._scan: DecisionScan | None = None
        metadata = source.metadata
        if metadata is None or not metadata.layers or self._order.num_passes > 1:
            scan = DecisionScan(source, is_checked=is_checked)
            for _ in scan.iter_tables(["prompt_id", "layer", "expert"]):
                pass
            self._scan = scan
            described = self._find_shapes(scan)
        else:
            described = metadata.layers
        self.layers = _choose_layers(described, layers, source=source)
        self._num_tokens = self._num_assignments = 0
        self._seen = np.zeros(len(self.prompts), dtype=bool)

    @property
    def path(self) -> str:
        """The trace's file or folder, for messages."""
        return str(self._source.path)

    @property
    def metadata(self) -> TraceMetadata | None:
        """The trace's metadata; None if it has none."""
        return self._source.metadata

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the trace."""
        return self._source.columns

    @property
    def has_ranks(self) -> bool:
        """Whether the experts of a decision are in the order of their weights."""
        metadata = self._source.metadata
        return "rank" in self._source.columns and (metadata is None or metadata.rank_order)

    @property
    def num_rows(self) -> NDArray[np.int64]:  # (num_prompts,)
        """Number of rows of each prompt."""
        return self._order.num_rows

    def set_passes(self, pass_of: NDArray[np.int64]) -> None:
        """Read the file once for each of several groups of prompts, group by group.

        Args:
            pass_of: Group of each prompt, from 0. # (num_prompts,)
        """
        self._order = replace(self._order, num_passes=int(pass_of.max()) + 1, pass_of=pass_of)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of any result should know; complete after the last window."""
        return (*self._source.notes, *self._notes)

    @property
    def facts(self) -> TraceFacts:
        """Facts about the trace; complete after the last window."""
        return describe_trace(
            self._source.metadata,
            path=None if self._source.table is not None else str(self._source.path),
            num_prompts=int(self._seen.sum()),
            num_tokens=self._num_tokens,
            num_assignments=self._num_assignments,
        )

    def __iter__(self) -> Iterator[DecisionWindow]:
        """Yield the windows; each prompt is in one of them.

        Raises:
            InputError: A row is not one of a trace.
        """
        self._num_tokens = self._num_assignments = 0
        for number in range(self._order.num_passes):
            yield from self._read_pass(number)

    def _read_pass(self, number: int) -> Iterator[DecisionWindow]:
        names = self._list_columns()
        scan = None
        if self._scan is None:
            scan = DecisionScan(self._source, is_checked=self._is_checked)
            tables = scan.iter_tables(names)
        else:
            tables = self._source.iter_tables(names)
        left = self._order.num_rows.copy()  # (num_prompts,) rows still to come
        held: list[WindowRows] = []
        num_complete = 0
        for table in tables:
            if not table.num_rows:
                continue
            words, prompt = encode_words(table, "prompt_id", default="")
            index = self._order.index_of(words)
            counts = np.bincount(prompt, minlength=len(words))
            left[index] -= counts
            num_complete += int(self._order.num_rows[index[left[index] == 0]].sum())
            rows = self._take_rows(table, index[prompt], of_pass=number)
            if len(rows):
                held.append(rows)
            if num_complete >= _ROWS_PER_WINDOW and held:
                joined = join_window_rows(held)
                is_complete = left[joined.prompt] == 0
                held, num_complete = [joined.take(~is_complete)], 0
                if is_complete.any():
                    yield self._make_window(joined.take(is_complete))
        if scan is not None:
            self._find_shapes(scan)
            # Rows that were checked once are not checked again.
            self._scan = scan
        if sum(map(len, held)):
            yield self._make_window(join_window_rows(held))

    def _make_window(self, rows: WindowRows) -> DecisionWindow:
        window = build_window(rows, self.layers, has_rank=self.has_ranks)
        self._seen[window.prompt] = True
        self._num_tokens += len(window.prompt)
        self._num_assignments += sum(
            int((choices.experts >= 0).sum()) for choices in window.layers.values()
        )
        return window

    def _find_shapes(self, scan: DecisionScan) -> tuple[RoutedLayer, ...]:
        shapes = find_shapes(
            self._source,
            scan.layers,
            num_experts=self._num_experts,
            top_k=self._top_k,
            is_checked=self._is_checked,
        )
        self._notes = shapes.notes
        return shapes.layers

    def _list_columns(self) -> list[str]:
        optional = [
            name for name in (_DOMAIN, "stack", "rank", self._by) if name in self._source.columns
        ]
        return list(
            dict.fromkeys(("prompt_id", "position", "layer", "expert", *optional, *self._columns))
        )

    def _take_rows(self, table: pa.Table, prompt: NDArray[np.int64], *, of_pass: int) -> WindowRows:
        """Return the rows of the layers asked for whose prompts belong to a pass."""
        place = self._find_places(table)
        keep = place >= 0
        if self._order.num_passes > 1:
            keep &= self._order.pass_of[prompt] == of_pass
        if not keep.all():
            table, prompt, place = table.filter(pa.array(keep)), prompt[keep], place[keep]
        if table.num_rows:
            domains, domain = encode_words(table, _DOMAIN, default=NO_DOMAIN)
            for one, code in zip(*_find_pairs(prompt, domain), strict=True):
                self.domains[one] = domains[code]
        return WindowRows(
            prompt=prompt,
            place=place,
            group=self._find_groups(table),
            position=table.column("position").to_numpy().astype(np.int64),
            expert=table.column("expert").to_numpy().astype(np.int64),
            rank=_take_column(table, "rank", np.int64),
            weight=_take_column(table, "weight", np.float32) if "weight" in self._columns else None,
            token_id=_take_column(table, "token_id", np.int64)
            if "token_id" in self._columns
            else None,
            phase=_find_phases(table) if "phase" in self._columns else None,
            pieces=_find_pieces(table) if "token" in self._columns else {},
        )

    def _find_places(self, table: pa.Table) -> NDArray[np.int16]:
        """Return the index of each row's layer among those asked for; -1 for others."""
        stacks, stack = encode_words(table, "stack", default="decoder")
        layer = table.column("layer").to_numpy().astype(np.int64)
        width = int(layer.max(initial=0)) + 1
        of_place = np.full((len(stacks), width), -1, dtype=np.int16)
        for index, known in enumerate(self.layers):
            if known.stack in stacks and known.layer < width:
                of_place[stacks.index(known.stack), known.layer] = index
        places: NDArray[np.int16] = of_place[stack, layer]
        return places

    def _find_groups(self, table: pa.Table) -> NDArray[np.int64]:
        if not table.num_rows:
            return np.zeros(0, dtype=np.int64)
        if self._by in table.column_names:
            column = table.column(self._by)
            if not pa.types.is_dictionary(column.type):
                index = table.column_names.index(self._by)
                words = column.cast(pa.string()).dictionary_encode()
                table = table.set_column(index, self._by, words)
        words, group = encode_words(table, self._by, default=NO_DOMAIN)
        for word in words:
            if word not in self._group_index:
                self._group_index[word] = len(self.groups)
                self.groups.append(word)
        return np.array([self._group_index[word] for word in words], dtype=np.int64)[group]


def _choose_layers(
    described: Collection[RoutedLayer], asked: Collection[int] | None, *, source: TraceSource
) -> tuple[RoutedLayer, ...]:
    ordered = tuple(sorted(described, key=lambda layer: (layer.stack, layer.layer)))
    if asked is None:
        return ordered
    missing = sorted(set(asked) - {layer.layer for layer in ordered})
    if missing:
        known = sorted({layer.layer for layer in ordered})
        shown = ", ".join(map(str, known[:_LAYERS_NAMED]))
        more = f" and {len(known) - _LAYERS_NAMED} more" if len(known) > _LAYERS_NAMED else ""
        raise UsageError(
            f"'{printable(source.path)}' has no routed layer {missing[0]}.",
            hint=f"Its routed layers are {shown}{more}.",
        )
    return tuple(layer for layer in ordered if layer.layer in asked)


def _take_column(table: pa.Table, name: str, kind: Any) -> NDArray[Any] | None:
    if name not in table.column_names:
        return None
    values: NDArray[Any] = table.column(name).to_numpy().astype(kind)
    return values


def _find_phases(table: pa.Table) -> NDArray[np.int8]:
    if not table.num_rows:
        return np.zeros(0, dtype=np.int8)
    words, phase = encode_words(table, "phase", default="")
    codes = [PHASES.index(word) if word in PHASES else -1 for word in words]
    return np.array(codes, dtype=np.int8)[phase]


def _find_pieces(table: pa.Table) -> dict[int, str]:
    """Return the piece of each token id of a table that has both columns."""
    if not table.num_rows or "token_id" not in table.column_names:
        return {}
    words, piece = encode_words(table, "token", default="")
    ids = table.column("token_id").to_numpy().astype(np.int64)
    return {int(one): words[code] for one, code in zip(*_find_pairs(ids, piece), strict=True)}


def _find_pairs(
    one: NDArray[np.int64], other: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct pairs of two arrays of non-negative numbers."""
    width = int(other.max(initial=0)) + 1
    first, second = np.divmod(np.unique(one * width + other), width)
    return first, second
