"""From the rows of a trace to how often each expert was chosen, by domain or by prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reader import TraceSource

GroupColumn = Literal["domain", "prompt_id"]


@dataclass(frozen=True)
class LayerCounts:
    """How often one routed layer chose each expert.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        top_k: Assignments per decision.
        assignments: Rows per group and expert. # (num_groups, num_experts)
        decisions: Decisions per group, among them those that ran no expert. # (num_groups,)
    """

    stack: str
    layer: int
    top_k: int
    assignments: NDArray[np.int64]
    decisions: NDArray[np.int64]

    @property
    def num_experts(self) -> int:
        """Routed experts of the layer; identity experts, where there are any, come after them."""
        return int(self.assignments.shape[1])


@dataclass(frozen=True)
class ExpertCounts:
    """How often every routed layer chose each expert, group by group.

    Attributes:
        groups: Domains or prompt ids, in the order they first occur.
        domains: The domain of each group.
        layers: In the order of stack and layer.
        notes: What had to be inferred, as sentences.
    """

    groups: tuple[str, ...]
    domains: tuple[str, ...]
    layers: tuple[LayerCounts, ...]
    notes: tuple[str, ...] = ()


@dataclass
class ExpertCounter:
    """Counts assignments as tables of rows go by; its size depends on the groups, not the rows.

    Args:
        by: The column whose values are the groups.
    """

    by: GroupColumn
    _index_of: dict[str, int] = field(default_factory=dict)
    _domains: list[str] = field(default_factory=list)
    # Column e + 1 counts expert e; column 0 the assignments that ran none.
    _rows: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table with `layer`, `expert`, the group and, if any, the stack."""
        if not table.num_rows:
            return
        words, group = self._register_groups(table)
        stacks, stack = _codes(table, "stack", default="decoder")
        layer = table.column("layer").to_numpy().astype(np.int64)
        expert = table.column("expert").to_numpy().astype(np.int64) + 1
        num_layers, width = int(layer.max()) + 1, int(expert.max()) + 1
        cell = ((stack * num_layers + layer) * len(words) + group) * width + expert
        shape = (len(stacks), num_layers, len(words), width)
        counts = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
        num_groups = len(self._index_of)
        groups = np.array([self._index_of[word] for word in words])
        for stack_code, layer_number in np.argwhere(counts.any(axis=(2, 3))):
            key = (stacks[stack_code], int(layer_number))
            total = self._rows.get(key, np.zeros((0, 0), dtype=np.int64))
            missing = (num_groups - total.shape[0], max(0, width - total.shape[1]))
            total = np.pad(total, ((0, missing[0]), (0, missing[1])))
            total[groups, :width] += counts[stack_code, layer_number]
            self._rows[key] = total

    def counts(self, layers: Iterable[RoutedLayer], *, notes: Iterable[str] = ()) -> ExpertCounts:
        """Return what was counted so far, given each layer's number of experts and top-k."""
        shapes = {
            (item.stack, item.layer): (item.num_experts + item.num_identity_experts, item.top_k)
            for item in layers
        }
        num_groups = len(self._index_of)
        result = []
        for (stack, layer), rows in sorted(self._rows.items()):
            num_experts, top_k = shapes[stack, layer]
            padding = (num_groups - rows.shape[0], max(0, num_experts + 1 - rows.shape[1]))
            rows = np.pad(rows, ((0, padding[0]), (0, padding[1])))
            result.append(
                LayerCounts(
                    stack=stack,
                    layer=layer,
                    top_k=top_k,
                    assignments=rows[:, 1:],
                    decisions=rows.sum(axis=1) // top_k,
                )
            )
        return ExpertCounts(
            groups=tuple(self._index_of),
            domains=tuple(self._domains),
            layers=tuple(result),
            notes=tuple(notes),
        )

    def _register_groups(self, table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
        """Return the table's groups and each row's index into them, and note their domains."""
        words, group = _codes(table, self.by, default=NO_DOMAIN)
        domains, domain = _codes(table, "domain", default=NO_DOMAIN)
        first_row = np.zeros(len(words), dtype=np.int64)
        first_row[group[::-1]] = np.arange(len(group))[::-1]
        for word, row in zip(words, first_row, strict=True):
            if word not in self._index_of:
                self._index_of[word] = len(self._index_of)
                self._domains.append(domains[domain[row]])
        return words, group


def count_experts(
    source: TraceSource,
    *,
    by: GroupColumn,
    num_experts: int | None = None,
    top_k: int | None = None,
) -> ExpertCounts:
    """Return how often each expert was chosen in a stored trace.

    Args:
        source: The trace.
        by: Count per domain or per prompt.
        num_experts: Routed experts per layer, for a trace without metadata; else inferred.
        top_k: Assignments per decision, likewise.

    Raises:
        InputError: The trace lacks a column, holds no rows, or contradicts what was said of it.
    """
    optional = [name for name in ("domain", "stack") if name in source.columns]
    columns = ["prompt_id", *optional, "position", "layer", "expert"]
    counter = ExpertCounter(by=by)
    largest: dict[tuple[str, int], int] = {}
    rows_per_decision = 0
    for table in source.iter_tables(columns):
        counter.add(table)
        if source.metadata is None:
            _update_largest_id(largest, table)
            rows_per_decision = rows_per_decision or _largest_decision(table)
    if source.metadata is not None:
        return _checked(source, counter.counts(source.metadata.layers))
    if not largest:
        raise InputError(f"'{source.path}' holds no rows.", hint="Trace again.")
    notes = []
    if num_experts is None:
        num_experts = max(largest.values()) + 1
        notes.append(
            f"{num_experts} experts is the largest id seen plus one; --num-experts says otherwise"
        )
    if top_k is None:
        top_k = rows_per_decision
        notes.append(
            f"top-{top_k} is the largest number of rows of one decision; --top-k says otherwise"
        )
    if max(largest.values()) >= num_experts:
        raise InputError(
            f"'{source.path}' has expert ids up to {max(largest.values())}, but --num-experts says "
            f"{num_experts}.",
            hint="Ids count from 0; leave the option out to have the number inferred.",
        )
    layers = [
        RoutedLayer(
            stack=stack,
            layer=layer,
            module="",
            router=None,
            num_experts=num_experts,
            num_identity_experts=0,
            top_k=top_k,
        )
        for stack, layer in largest
    ]
    return _checked(source, counter.counts(layers, notes=notes))


def _checked(source: TraceSource, counts: ExpertCounts) -> ExpertCounts:
    if not counts.layers:
        raise InputError(f"'{source.path}' holds no rows.", hint="Trace again.")
    return counts


def _update_largest_id(largest: dict[tuple[str, int], int], table: pa.Table) -> None:
    keys = ["stack", "layer"] if "stack" in table.column_names else ["layer"]
    for row in table.group_by(keys).aggregate([("expert", "max")]).to_pylist():
        key = (row.get("stack", "decoder"), row["layer"])
        largest[key] = max(largest.get(key, 0), row["expert_max"])


def _largest_decision(table: pa.Table) -> int:
    keys = [
        name for name in ("prompt_id", "stack", "layer", "position") if name in table.column_names
    ]
    sizes = table.group_by(keys).aggregate([("expert", "count")])
    return int(pc.max(sizes.column("expert_count")).as_py())


def _codes(table: pa.Table, name: str, *, default: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the words that occur in a column, and each row's index into them."""
    if name not in table.column_names:
        return [default], np.zeros(table.num_rows, dtype=np.int64)
    column = table.column(name).unify_dictionaries().combine_chunks()
    codes = column.indices.to_numpy().astype(np.int64)
    occurs = np.bincount(codes, minlength=len(column.dictionary)) > 0
    words = column.dictionary.filter(pa.array(occurs)).to_pylist()
    return words, (np.cumsum(occurs) - 1)[codes]
