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
from moetool.trace.decisions import NO_DOMAIN, NO_EXPERT
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

    def num_ids(self) -> dict[tuple[str, int], int]:
        """Return the largest id seen plus one, for every layer."""
        return {
            key: int(np.flatnonzero(rows.any(axis=0)).max()) for key, rows in self._rows.items()
        }

    def _register_groups(self, table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
        """Return the table's groups and each row's index into them, and note their domains."""
        words, group = _codes(table, self.by, default=NO_DOMAIN)
        domains, domain = _codes(table, "domain", default=NO_DOMAIN)
        first_row = np.zeros(len(words), dtype=np.int64)
        first_row[group[::-1]] = np.arange(len(group))[::-1]
        for code in np.argsort(first_row):
            if words[code] not in self._index_of:
                self._index_of[words[code]] = len(self._index_of)
                self._domains.append(domains[domain[first_row[code]]])
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
    # The parts of an unfinished trace may not know their layers yet.
    described = source.metadata.layers if source.metadata is not None else ()
    decision: dict[tuple[str, int], int] = {}
    for table in source.iter_tables(columns):
        _check_numbers(source, table)
        counter.add(table)
        if not described:
            _update_largest_decision(decision, table)
    if described:
        _check_described(source, counter, described)
        return _checked(source, counter.counts(described))
    num_ids = counter.num_ids()
    if not num_ids:
        raise InputError(f"'{source.path}' holds no rows.", hint="Trace again.")
    notes = []
    if num_experts is None:
        num_experts = max(1, *num_ids.values())
        notes.append(
            f"{num_experts} experts is the largest id seen plus one; --num-experts says otherwise"
        )
    if top_k is None:
        seen = " or ".join(f"top-{k}" for k in sorted(set(decision.values())))
        notes.append(
            f"{seen} is the largest number of rows of one decision; --top-k says otherwise"
        )
    elif max(decision.values()) > top_k:
        raise InputError(
            f"'{source.path}' has decisions of {max(decision.values())} rows, but --top-k says "
            f"{top_k}.",
            hint="Leave the option out to have the number inferred.",
        )
    if max(num_ids.values()) > num_experts:
        raise InputError(
            f"'{source.path}' has expert ids up to {max(num_ids.values()) - 1}, but --num-experts says "
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
            top_k=top_k or decision[stack, layer],
        )
        for stack, layer in num_ids
    ]
    return _checked(source, counter.counts(layers, notes=notes))


def _checked(source: TraceSource, counts: ExpertCounts) -> ExpertCounts:
    if not counts.layers:
        raise InputError(f"'{source.path}' holds no rows.", hint="Trace again.")
    return counts


def _check_numbers(source: TraceSource, table: pa.Table) -> None:
    for name, least in (("layer", 0), ("expert", NO_EXPERT)):
        seen = pc.min(table.column(name)).as_py()
        if seen is not None and seen < least:
            raise InputError(
                f"'{source.path}' can't be read as a trace.",
                hint="See the column table in the README for the values a trace has.",
                facts=[f"seen: {name} {seen}, below {least}"],
            )


def _check_described(
    source: TraceSource, counter: ExpertCounter, layers: Iterable[RoutedLayer]
) -> None:
    sizes = {
        (item.stack, item.layer): item.num_experts + item.num_identity_experts for item in layers
    }
    for (stack, layer), num_ids in counter.num_ids().items():
        if num_ids > sizes.get((stack, layer), 0):
            raise InputError(
                f"'{source.path}' has expert {num_ids - 1} in layer {layer}, of which its metadata "
                f"knows {sizes.get((stack, layer), 0)} experts.",
                hint="Trace again, or remove the metadata to read the table alone.",
            )


def _update_largest_decision(largest: dict[tuple[str, int], int], table: pa.Table) -> None:
    """Raise each layer's largest number of rows of one decision to what a table shows."""
    layer = ["stack", "layer"] if "stack" in table.column_names else ["layer"]
    sizes = table.group_by([*layer, "prompt_id", "position"]).aggregate([("expert", "count")])
    for row in sizes.group_by(layer).aggregate([("expert_count", "max")]).to_pylist():
        key = (row.get("stack", "decoder"), row["layer"])
        largest[key] = max(largest.get(key, 0), row["expert_count_max"])


def _codes(table: pa.Table, name: str, *, default: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the words that occur in a column, and each row's index into them."""
    if name not in table.column_names:
        return [default], np.zeros(table.num_rows, dtype=np.int64)
    column = table.column(name).unify_dictionaries().combine_chunks()
    codes = column.indices.to_numpy().astype(np.int64)
    occurs = np.bincount(codes, minlength=len(column.dictionary)) > 0
    words = column.dictionary.filter(pa.array(occurs)).to_pylist()
    return words, (np.cumsum(occurs) - 1)[codes]
