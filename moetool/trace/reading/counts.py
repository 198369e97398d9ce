"""Counts of how often each expert was chosen in a trace, by domain or by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.plain import show_fields
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.layer_shapes import find_shapes
from moetool.trace.reading.reader import TraceSource
from moetool.trace.reading.words import count_values
from moetool.trace.scanning.columns import CodedWords, find_changes, take_words
from moetool.wording import format_bytes

GroupColumn = Literal["domain", "prompt_id"]

# For all layers together, 8 bytes each: a limit on memory.
_MOST_CELLS = 2**30
# For rows that leave nearly all cells empty, as where every prompt has other layers: half a
# gibibyte, which a short file may take.
_MOST_CELLS_OF_FEW_ROWS = 2**26
# Of a layer, twice what published models have.
_MOST_EXPERTS = 2**12
_NOTHING = np.zeros((0, 0), dtype=np.int64)


@dataclass(frozen=True)
class PromptSums:
    """Sums over the prompts of each group; `a` is a prompt's assignments, `n` its decisions.

    Attributes:
        num_prompts: Prompts with a decision. # (num_groups,)
        num_choosing: Prompts that chose the expert. # (num_groups, num_experts)
        squared_assignments: Sum of `a * a`. # (num_groups, num_experts)
        products: Sum of `a * n`. # (num_groups, num_experts)
        squared_decisions: Sum of `n * n`. # (num_groups,)
    """

    num_prompts: NDArray[np.float64]
    num_choosing: NDArray[np.float64]
    squared_assignments: NDArray[np.float64]
    products: NDArray[np.float64]
    squared_decisions: NDArray[np.float64]


@dataclass(frozen=True)
class LayerCounts:
    """Counts of how often one routed layer chose each expert.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        top_k: Assignments per decision, at most.
        assignments: # (num_groups, num_experts)
        decisions: Including those that ran no expert. # (num_groups,)
        prompt_sums: Sums over the prompts of each group, if the groups are domains.
        knows_top_k: Whether top-k is known. Otherwise it is 1, and decisions are assignments.
    """

    stack: str
    layer: int
    top_k: int
    assignments: NDArray[np.int64]
    decisions: NDArray[np.int64]
    prompt_sums: PromptSums | None = None
    knows_top_k: bool = True

    @property
    def num_experts(self) -> int:
        """Experts of the layer; identity experts, if any, come last."""
        return int(self.assignments.shape[1])


@dataclass(frozen=True)
class ExpertCounts:
    """Counts of how often every routed layer chose each expert, group by group.

    Attributes:
        groups: Domains or prompt ids, in order of first occurrence.
        domains: Domain of each group.
        layers: In the order of stack and layer.
        notes: What had to be inferred, and what a reader should know, as sentences.
    """

    groups: tuple[str, ...]
    domains: tuple[str, ...]
    layers: tuple[LayerCounts, ...]
    notes: tuple[str, ...] = ()

    __repr__ = show_fields


@dataclass
class ExpertCounter:
    """Counts assignments, table by table; its size depends on the groups, not the rows.

    Args:
        by: Column whose values are the groups.
    """

    by: GroupColumn
    _index_of: dict[str, int] = field(default_factory=dict)
    _domains: list[str] = field(default_factory=list)
    # Column e + 1 counts expert e; column 0 counts assignments that ran no expert.
    _rows: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)
    # The arrays that these are part of.
    _room: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)
    _num_cells: int = 0
    _num_rows: int = 0
    _width: int = 0

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table with `layer`, `expert`, the group and, optionally, the stack."""
        if not table.num_rows:
            return
        self._num_rows += table.num_rows
        layer, expert = (table.column(name).to_numpy() for name in ("layer", "expert"))
        by, domain, stack = (take_words(table, name) for name in (self.by, "domain", "stack"))
        starts = np.flatnonzero(find_changes(by.codes, domain.codes, stack.codes, layer))
        group = self._register_groups(by.find(starts), domain.find(starts))
        stacks, of_stack = stack.find(starts)
        layers, of_layer = np.unique(layer[starts], return_inverse=True)
        num_groups, width = len(self._index_of), int(expert.max()) + 2
        self._width = max(self._width, width)
        # Runs of one group and layer are counted together, in cells of one for each expert id.
        places, of_run = np.unique(
            (of_stack * len(layers) + of_layer) * num_groups + group, return_inverse=True
        )
        cell = np.repeat(of_run * width + 1, np.diff(starts, append=len(layer)))
        cell += expert
        cells, number = count_values(cell)
        of_run, column = np.divmod(cells, width)
        place, group = np.divmod(places[of_run], num_groups)
        first = np.flatnonzero(np.diff(place, prepend=-1))
        for start, end in zip(first, [*first[1:], len(place)], strict=True):
            stack_code, layer_code = divmod(int(place[start]), len(layers))
            key = (stacks[stack_code], int(layers[layer_code]))
            total = self._widen(key, width=width)
            total[group[start:end], column[start:end]] += number[start:end]

    def add_counter(self, other: ExpertCounter) -> NDArray[np.intp]:
        """Add what another counter has counted, and return the index of each of its groups."""
        return self._add_as(other, names=list(other._index_of))

    def add_domains(self, prompts: ExpertCounter) -> NDArray[np.intp]:
        """Add what a counter by prompt has counted, by domain; return the index of each prompt's."""
        return self._add_as(prompts, names=prompts._domains)

    def _add_as(self, other: ExpertCounter, *, names: list[str]) -> NDArray[np.intp]:
        """Add what another counter has counted, its groups under other names, some of them the same."""
        for name, domain in zip(names, other._domains, strict=True):
            if name not in self._index_of:
                self._index_of[name] = len(self._index_of)
                self._domains.append(domain)
        group = np.array([self._index_of[name] for name in names], dtype=np.intp)
        self._num_rows += other._num_rows
        self._width = max(self._width, other._width)
        for key, rows in other._rows.items():
            total = self._widen(key, width=rows.shape[1])
            np.add.at(total[:, : rows.shape[1]], group[: len(rows)], rows)
        return group

    def counts(
        self,
        layers: Iterable[RoutedLayer],
        *,
        notes: Iterable[str] = (),
        decisions: Mapping[tuple[str, int], NDArray[np.int64]] | None = None,
    ) -> ExpertCounts:
        """Return the counts so far.

        Args:
            layers: Source of each layer's number of experts and top-k.
            notes: As in the result.
            decisions: By stack and layer, decisions per group. By default, the rows of each group
                divided by top-k, which is right if every decision has top-k rows.
        """
        shapes = {
            (item.stack, item.layer): (item.num_experts + item.num_identity_experts, item.top_k)
            for item in layers
        }
        result = []
        for (stack, layer), seen in sorted(self._rows.items()):
            num_experts, top_k = shapes[stack, layer]
            rows = _pad(seen, (len(self._index_of), num_experts + 1))
            result.append(
                LayerCounts(
                    stack=stack,
                    layer=layer,
                    top_k=top_k,
                    assignments=rows[:, 1 : num_experts + 1],
                    decisions=rows.sum(axis=1) // top_k
                    if decisions is None
                    else decisions[stack, layer],
                )
            )
        return ExpertCounts(
            groups=tuple(self._index_of),
            domains=tuple(self._domains),
            layers=tuple(result),
            notes=tuple(notes),
        )

    @property
    def num_groups(self) -> int:
        """Groups seen so far."""
        return len(self._index_of)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domain of each group, in order of first occurrence."""
        return tuple(self._domains)

    @property
    def rows(self) -> Mapping[tuple[str, int], NDArray[np.int64]]:
        """By stack and layer, rows per group and expert; column 0 counts rows without an expert.

        Groups after the last one with rows in the layer are left out.
        """
        return self._rows

    def group_index(self, words: Iterable[str]) -> NDArray[np.int64]:
        """Return the index of each given group among those of the counts."""
        return np.array([self._index_of[word] for word in words], dtype=np.int64)

    def _widen(self, key: tuple[str, int], *, width: int) -> NDArray[np.int64]:
        """Return a layer's counts, with room for all groups and `width` columns."""
        held = self._rows.get(key, _NOTHING)
        num_groups, num_columns = len(self._index_of), max(width, held.shape[1])
        if held.shape == (num_groups, num_columns):
            return held
        num_cells = self._num_cells + num_groups * num_columns - held.size
        # In a trace each prompt has at least a row in each layer; twice that leaves out some.
        most = 2 * self._num_rows * min(self._width, _MOST_EXPERTS)
        if num_cells > max(_MOST_CELLS_OF_FEW_ROWS, most):
            raise InputError(
                f"Counting {self._num_rows:,} rows takes more than {format_bytes(num_cells * 8)} "
                f"of memory: they are of {num_groups:,} groups and {self._width - 1:,} experts, in "
                f"{max(1, len(self._rows)):,} or more layers.",
                hint="See docs/traces/trace-format.md for the values that a trace has.",
            )
        if num_cells > _MOST_CELLS:
            raise InputError(
                f"Counting {num_groups:,} groups by expert takes more than "
                f"{format_bytes(_MOST_CELLS * 8)} of memory.",
                hint="Analyse fewer prompts at a time.",
            )
        self._num_cells = num_cells
        room = self._room.get(key, _NOTHING)
        if room.shape[0] < num_groups or room.shape[1] < num_columns:
            # Half as many groups again: a table with new ones rarely makes all counts move.
            room = _pad(held, (num_groups + num_groups // 2, num_columns))
            self._room[key] = room
        self._rows[key] = room[:num_groups, :num_columns]
        return self._rows[key]

    def _register_groups(self, groups: CodedWords, domains: CodedWords) -> NDArray[np.intp]:
        """Return the index of each run's group among all, and note the domains of new ones."""
        words, group = groups
        names, domain = domains
        first = np.zeros(len(words), dtype=np.intp)
        first[group[::-1]] = np.arange(len(group))[::-1]
        for code in np.argsort(first):
            if words[code] not in self._index_of:
                self._index_of[words[code]] = len(self._index_of)
                self._domains.append(names[domain[first[code]]])
        return np.array([self._index_of[word] for word in words], dtype=np.intp)[group]


def count_experts(
    source: TraceSource,
    *,
    by: GroupColumn,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> ExpertCounts:
    """Return how often each expert was chosen in a stored trace.

    Args:
        source: The trace.
        by: Column to count by.
        num_experts: Routed experts per layer, for a trace without metadata; by default inferred.
        top_k: Assignments per decision, for a trace without metadata; by default inferred.
        validate: Refuse rows that no trace has, such as rows that occur twice or weights below 0.
            Otherwise, rows are counted as they are.

    Raises:
        InputError: The trace lacks a column, holds no rows, fails a check, or contradicts the
            arguments.
    """
    scan = DecisionScan(source, is_checked=validate)
    counter = ExpertCounter(by=by)
    for table in scan.iter_tables(["prompt_id", "layer", "expert"]):
        counter.add(table)
    if not scan.layers:
        raise InputError(
            f"'{printable(source.path)}' holds no rows.",
            hint="Trace at least one prompt."
            if source.table is None
            else "Give a frame with the rows of at least one prompt.",
        )
    shapes = find_shapes(
        source, scan.layers, num_experts=num_experts, top_k=top_k, is_checked=validate
    )
    words = scan.prompts if by == "prompt_id" else scan.domains
    group = counter.group_index(words)
    decisions = {}
    for place, number in scan.num_decisions.items():
        total = np.zeros(counter.num_groups, dtype=np.int64)
        np.add.at(total, group[: len(number)], number)
        decisions[place] = total
    notes = [*source.notes, *shapes.notes]
    return counter.counts(shapes.layers, notes=notes, decisions=decisions)


def _pad(table: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return a table padded with zeros to at least a shape."""
    missing = [max(0, size - have) for size, have in zip(shape, table.shape, strict=True)]
    return np.pad(table, [(0, number) for number in missing]) if any(missing) else table
