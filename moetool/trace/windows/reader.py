"""Decisions of a trace, read a window of whole prompts at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.trace.facts import TraceFacts, describe_trace
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.layer_shapes import check_layers, find_shapes
from moetool.trace.reading.reader import TraceSource
from moetool.trace.windows.choice_tally import ChoiceTally
from moetool.trace.windows.prompt_order import PromptOrder, find_prompt_order
from moetool.trace.windows.table_rows import TableRows, drop_runs
from moetool.trace.windows.window import DecisionWindow, build_window
from moetool.trace.windows.window_rows import WindowRows, list_runs, take_runs

# Rows of complete prompts that make a window.
_ROWS_PER_WINDOW = 1_000_000
_DOMAIN = "domain"


class DecisionReader:
    """Reads the decisions of a trace, a window of whole prompts at a time.

    Memory holds a window and the rows of prompts that have begun, at least those of the largest
    prompt. If the rows of most prompts are spread over the file, it is read once for each group of
    prompts.

    Attributes:
        layers: Those asked for that have rows, in the order of stack and layer.
        prompts: In order of first occurrence; known from the start.

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
            file = source.lacking.get(by, source.path)
            raise UsageError(
                f"'{printable(file)}' has no column '{printable(by, max_length=60)}' to group by.",
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
        self._rows = TableRows(self._order, by=by, columns=self._columns)
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
        self._num_tokens, self._tally = 0, ChoiceTally(self.layers)
        self._seen = np.zeros(len(self.prompts), dtype=bool)

    @property
    def num_rows_of_prompts(self) -> NDArray[np.int64]:
        """Rows of each prompt in all layers of the trace; known from the start.

        Returns:
            # (num_prompts,)
        """
        return self._order.num_rows

    @property
    def domains(self) -> list[str]:
        """The domain of each prompt seen so far."""
        return self._rows.domains

    @property
    def groups(self) -> list[str]:
        """The values of the grouping column seen so far."""
        return self._rows.groups

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
        return (*self._source.notes, *self._notes, *self._tally.describe())

    @property
    def facts(self) -> TraceFacts:
        """Facts about the trace; complete after the last window."""
        return describe_trace(
            self._source.metadata,
            path=None if self._source.table is not None else str(self._source.path),
            num_prompts=int(self._seen.sum()),
            num_tokens=self._num_tokens,
            num_assignments=self._tally.num_assignments,
        )

    def __iter__(self) -> Iterator[DecisionWindow]:
        """Yield the windows; each prompt is in one of them.

        Raises:
            InputError: A row is not one of a trace.
        """
        self._num_tokens, self._tally = 0, ChoiceTally(self.layers)
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
            rows = self._rows.take(table, self.layers)
            prompts = np.unique(rows.prompt)
            np.subtract.at(left, rows.prompt, rows.size)
            num_complete += int(self._order.num_rows[prompts[left[prompts] == 0]].sum())
            is_kept = rows.place >= 0
            if self._order.num_passes > 1:
                is_kept &= self._order.pass_of[rows.prompt] == number
            rows = drop_runs(rows, is_kept)
            if len(rows):
                held.append(rows)
            if num_complete >= _ROWS_PER_WINDOW and held:
                prompt, place = list_runs(held)
                is_complete = left[prompt] == 0
                window = self._make_window(held, is_complete, prompt, place)
                rest = take_runs(held, np.flatnonzero(~is_complete))
                held, num_complete = [rest] if len(rest) else [], 0
                if window is not None:
                    yield window
        if scan is not None:
            self._find_shapes(scan)
            # Rows that were checked once are not checked again.
            self._scan = scan
        if held:
            prompt, place = list_runs(held)
            window = self._make_window(held, np.ones(len(prompt), dtype=bool), prompt, place)
            if window is not None:
                yield window

    def _make_window(
        self,
        parts: list[WindowRows],
        is_complete: NDArray[np.bool_],
        prompt: NDArray[np.int64],
        place: NDArray[np.int64],
    ) -> DecisionWindow | None:
        """Return the window of the complete runs of several parts; None if there are none."""
        (runs,) = np.nonzero(is_complete)
        if not len(runs):
            return None
        rows = take_runs(parts, runs[np.lexsort((prompt[runs], place[runs]))])
        window = build_window(rows, self.layers, has_rank=self.has_ranks, pieces=self._rows.pieces)
        self._seen[window.prompt] = True
        self._num_tokens += len(window.prompt)
        self._tally.add(rows, window)
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


def _choose_layers(
    described: Collection[RoutedLayer], asked: Collection[int] | None, *, source: TraceSource
) -> tuple[RoutedLayer, ...]:
    ordered = tuple(sorted(described, key=lambda layer: (layer.stack, layer.layer)))
    check_layers(source.path, (layer.layer for layer in ordered), asked)
    return tuple(layer for layer in ordered if asked is None or layer.layer in asked)
