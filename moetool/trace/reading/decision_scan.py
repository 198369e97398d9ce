"""Counting and checking of a trace's decisions, table by table, whatever the order of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.reading.words import encode_words
from moetool.trace.scanning.fault_log import FaultLog, LoggedFault, find_faulty
from moetool.trace.scanning.last_positions import LastPositions
from moetool.trace.scanning.layer_rows import DecisionTally, LayerRows
from moetool.trace.scanning.places import PLACE_BITS
from moetool.trace.scanning.registry import Registry
from moetool.trace.scanning.rows_of_decisions import Fault, Rows, find_fault, find_starts, join_rows
from moetool.trace.scanning.runs import Runs, are_sound, find_runs
from moetool.trace.scanning.values import REPAIR_HINT, check_values, keep_numbered

if TYPE_CHECKING:
    from moetool.trace.reading.reader import TraceSource

# Columns that a scan reads in addition to the required ones.
_OPTIONAL = ("domain", "stack", "rank", "weight")
# Rows of an unordered trace that are held at a time: about 300 MB.
_ROWS_AT_ONCE = 4_000_000
_TWICE_HINT = (
    "Remove the repetition; `moetool validate` lists all faults, and --no-validate (validate=False "
    "in Python) counts it twice."
)


class DecisionScan:
    """Counts the decisions of a trace and checks the rows of each.

    A decision's rows may be spread over tables and files. While each (prompt, stack, layer) has its
    positions in ascending order, as in traces of moetool and most others, the scan remembers only
    one position for each, and the rows of its latest decision. If the order is different, it reads
    the rows once more, a group of prompts at a time.

    Attributes:
        file: The file that holds the latest table.

    Args:
        source: The trace.
        is_checked: Refuse rows that no trace has. Otherwise, they are counted as they are.
        log: Note faults there instead of refusing the trace; rows that can't be numbered are
            then left out.
    """

    def __init__(
        self, source: TraceSource, *, is_checked: bool = True, log: FaultLog | None = None
    ) -> None:
        self.file: Path | None = None
        self._source = source
        self._is_checked = is_checked
        metadata = source.metadata
        self._has_weight_order = metadata is None or metadata.rank_order
        self._log = log
        self._registry = Registry(is_checked=is_checked, log=log)
        self._tally = DecisionTally(self._registry)
        self._num_rows = 0
        self._is_scattered = False
        self._carried: Rows | None = None
        self._fault: InputError | None = None
        self._last = LastPositions()

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts in order of first occurrence."""
        return self._registry.prompts

    @property
    def domains(self) -> Sequence[str]:
        """The domain of each prompt."""
        return self._registry.domains

    @property
    def num_decisions(self) -> dict[tuple[str, int], NDArray[np.int64]]:
        """Decisions of each prompt, by stack and layer. # (num_prompts,)."""
        num_prompts = len(self.prompts)
        return {place: number[:num_prompts] for place, number in self._tally.num_decisions.items()}

    @property
    def layers(self) -> dict[tuple[str, int], LayerRows]:
        """Summaries of the rows by stack and layer."""
        return self._tally.layers

    def iter_tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the tables of the source with at least these columns, each after its scan.

        The properties are complete after the last table.

        Raises:
            InputError: A column is missing, a value does not fit its column, or the rows are not
                those of a trace.
        """
        mine = [name for name in self._source.columns if name in _OPTIONAL]
        needed = ("prompt_id", "position", "layer", "expert", *mine)
        names = list(dict.fromkeys([*columns, *needed]))
        first_row = 0  # Of the table, in its file.
        for path, table in self._source.iter_file_tables(names):
            first_row = first_row if path == self.file else 0
            self.file = path
            if table.num_rows and not self._add_in_order(path, table):
                check_values(
                    path, table, first_row=first_row, is_checked=self._is_checked, log=self._log
                )
                numbered = table if self._log is None else keep_numbered(table)
                if numbered.num_rows:
                    self._add(self._number(path, numbered))
            first_row += table.num_rows
            yield table
        if self._is_scattered:
            self._scan_again(list(needed))
        elif self._carried is not None:
            self._close(self._carried, find_starts(self._carried.key, self._carried.position))
        if self._fault is not None and not self._is_scattered:
            raise self._fault

    def _number(self, path: Path, table: pa.Table) -> Rows:
        """Return the rows of a table as numbers, after noting its prompts and their domains."""
        words, prompt = encode_words(table, "prompt_id", default="")
        domains, domain = encode_words(table, "domain", default=NO_DOMAIN)
        stacks, stack = encode_words(table, "stack", default="decoder")
        layer = table.column("layer").to_numpy()
        key = self._registry.register(
            path, (words, prompt), (domains, domain), (stacks, stack), layer
        )
        names = table.column_names
        return Rows(
            key=key,
            position=table.column("position").to_numpy().astype(np.int64),
            expert=table.column("expert").to_numpy().astype(np.int64),
            rank=table.column("rank").to_numpy().astype(np.int64) if "rank" in names else None,
            weight=table.column("weight").to_numpy() if "weight" in names else None,
            file=np.full(table.num_rows, self._source.files.index(path), dtype=np.int32),
            is_carried=np.zeros(table.num_rows, dtype=bool),
        )

    def _add(self, rows: Rows) -> None:
        self._num_rows += len(rows)
        if self._is_scattered:
            return
        rows = rows if self._carried is None else join_rows([self._carried, rows])
        rows = rows.group()
        starts = find_starts(rows.key, rows.position)
        blocks = find_starts(rows.key[starts])  # Among decisions.
        if not self._are_ascending(rows, starts, blocks):
            # Rows of a decision come after those of later ones: all are known only at the end.
            self._is_scattered = True
            self._carried = None
            if self._log is not None:
                self._log.forget_decisions()
            self._tally = DecisionTally(self._registry)
            return
        # The last decision of a key may continue in the next table, unless this one had no more of it.
        last = np.append(blocks[1:], len(starts)) - 1
        ends = np.append(starts[1:], len(rows))
        is_open = np.zeros(len(starts), dtype=bool)
        is_open[last] = ~rows.is_carried[ends[last] - 1]
        row_is_open = np.repeat(is_open, ends - starts)
        self._carried = rows.take(row_is_open).carry()
        closed = rows.take(~row_is_open)
        if len(closed):
            self._close(closed, find_starts(closed.key, closed.position))

    def _are_ascending(
        self, rows: Rows, starts: NDArray[np.intp], blocks: NDArray[np.intp]
    ) -> bool:
        """Return whether the positions of each key ascend from those seen before; record the last."""
        key, position = rows.key[starts], rows.position[starts]
        falls = np.diff(position) < 0
        falls[blocks[1:] - 1] = False
        keys, first = key[blocks], position[blocks]
        is_new = ~rows.is_carried[starts[blocks]]
        if falls.any() or (is_new & (first <= self._last.find(keys))).any():
            return False
        self._last.record(keys, position[np.append(blocks[1:], len(starts)) - 1])
        return True

    def _add_in_order(self, path: Path, table: pa.Table) -> bool:
        """Count a table in moetool's own order without sorting; return whether it is one.

        This does what `check_values`, `_number` and `_add` do together. Any table for which it
        could do something else is left to them.
        """
        runs = None if self._is_scattered else find_runs(table)
        if runs is None or not are_sound(
            runs, is_checked=self._is_checked, has_weight_order=self._has_weight_order
        ):
            return False
        prompts, domains, stacks = (
            column.find(runs.starts) for column in (runs.prompt, runs.domain, runs.stack)
        )
        key = self._registry.register(path, prompts, domains, stacks, runs.layer[runs.starts])
        first, last = runs.first, np.append(runs.first[1:], len(runs.decisions)) - 1
        position = runs.position[runs.decisions].astype(np.int64)
        carried = self._carried
        if (key[1:] <= key[:-1]).any():
            return False
        is_new = np.ones(len(key), dtype=bool)
        if carried is not None:
            if (carried.key[1:] < carried.key[:-1]).any() or carried.key[-1] > key[0]:
                return False
            is_new[0] = carried.key[-1] < key[0]
            if not is_new[0] and carried.position[-1] > position[0]:
                return False
        if (is_new & (position[first] <= self._last.find(key))).any():
            return False
        self._last.record(key, position[last])
        self._num_rows += table.num_rows
        self._carry_on(runs, key, last, file=self._source.files.index(path))
        # All decisions lie within the table, except the first and the last of a run.
        number = last - first
        first = first.copy()
        if number[0]:
            first[0], number[0] = 1, number[0] - 1
        is_counted = number > 0
        if is_counted.any():
            start = first[is_counted]
            num_ids = np.maximum.reduceat(runs.expert, runs.starts).astype(np.int64) + 1
            self._tally.add(
                key[is_counted],
                position=position[start],
                size=runs.decisions[start + 1] - runs.decisions[start],
                num_ids=num_ids[is_counted],
                number=number[is_counted],
            )
        return True

    def _carry_on(
        self, runs: Runs, key: NDArray[np.int64], last: NDArray[np.intp], *, file: int
    ) -> None:
        """Close the carried decisions and the first of a table; carry the last of each run."""
        carried, opened = (
            self._carried,
            runs.take(last, key=key, run=np.arange(len(last)), file=file),
        )
        closed = [] if carried is None else [carried]
        if last[0]:
            nothing = np.zeros(1, dtype=np.intp)
            closed.append(runs.take(nothing, key=key, run=nothing, file=file))
        elif carried is not None:
            goes_on = (carried.key == key[0]) & (carried.position == runs.position[0])
            closed, opened = [carried.take(~goes_on)], join_rows([carried.take(goes_on), opened])
        self._carried = opened.carry()
        rows = join_rows(closed) if closed else opened.take(np.zeros(0, dtype=np.intp))
        if len(rows):
            self._close(rows, find_starts(rows.key, rows.position))

    def _scan_again(self, columns: Sequence[str]) -> None:
        """Read the rows of a group of prompts at a time, and close their decisions in order."""
        num_passes = -(-self._num_rows // _ROWS_AT_ONCE)
        for number in range(num_passes):
            parts = []
            for path, table in self._source.iter_file_tables(columns):
                numbered = table if self._log is None else keep_numbered(table)
                if numbered.num_rows:
                    rows = self._number(path, numbered)
                    prompt = rows.key >> PLACE_BITS
                    parts.append(rows.take(prompt % num_passes == number))
            rows = join_rows(parts).sort()
            if len(rows):
                self._close(rows, find_starts(rows.key, rows.position))

    def _close(self, rows: Rows, starts: NDArray[np.intp]) -> None:
        """Check and count decisions whose rows lie together and are complete."""
        if not self._has_weight_order:
            rows = replace(rows, weight=None)  # Rank 0 need not have the largest.
        if self._log is not None:
            self._log_decisions(rows, starts)
        fault = find_fault(rows, starts) if self._is_checked and self._log is None else None
        if fault is not None:
            error = self._name_fault(fault, rows)
            # A repetition remains one; other faults may still turn out to be rows that are scattered.
            if fault.is_repeated or self._is_scattered:
                raise error
            self._fault = self._fault or error
        self._tally.add(
            rows.key[starts],
            position=rows.position[starts],
            size=np.diff(starts, append=len(rows)),
            num_ids=np.maximum.reduceat(rows.expert, starts) + 1,
        )

    def _log_decisions(self, rows: Rows, starts: NDArray[np.intp]) -> None:
        assert self._log is not None
        for kind, found in find_faulty(rows, starts).items():
            key = rows.key[found.row]
            stack, layer = self._registry.find_place(key)
            fault = LoggedFault(
                found.words,
                printable(self._source.files[rows.file[found.row]]),
                prompt_id=self.prompts[int(key) >> PLACE_BITS],
                stack=stack,
                layer=layer,
                position=int(rows.position[found.row]),
            )
            self._log.add(kind, fault, number=found.number)

    def _name_fault(self, fault: Fault, rows: Rows) -> InputError:
        first, second = (self._source.files[rows.file[row]] for row in (fault.other, fault.row))
        facts = [f"seen: {self._registry.describe(rows.key[fault.row], rows.position[fault.row])}"]
        if first != second:
            facts.append(f"first: in '{printable(first)}'")
        return InputError(
            f"'{printable(second)}' {fault.words}.",
            hint=_TWICE_HINT if fault.is_repeated else REPAIR_HINT,
            facts=facts,
        )
