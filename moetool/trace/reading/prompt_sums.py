"""Sums over prompts that give the spread between prompts without keeping any prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.counts import ExpertCounter, ExpertCounts, PromptSums


def sum_prompts(
    assignments: NDArray[np.int64],
    decisions: NDArray[np.int64],
    *,
    group: NDArray[np.intp],
    num_groups: int,
) -> PromptSums:
    """Return the sums over the prompts of each group.

    Args:
        assignments: # (num_prompts, num_experts)
        decisions: # (num_prompts,)
        group: Index of each prompt's group. # (num_prompts,)
        num_groups: All groups, including those without prompts.
    """
    # As floats: the squared counts of a long trace overflow integers.
    a, n = assignments.astype(np.float64), decisions.astype(np.float64)

    def add_up(values: NDArray[Any]) -> NDArray[np.float64]:
        total = np.zeros((num_groups, *values.shape[1:]))
        np.add.at(total, group, values)
        return total

    return PromptSums(
        num_prompts=add_up(decisions > 0),
        num_choosing=add_up(assignments > 0),
        squared_assignments=add_up(a * a),
        products=add_up(a * n[:, None]),
        squared_decisions=add_up(n * n),
    )


class DomainCounter:
    """Counts assignments by domain, whole prompts at a time; its size depends on the domains."""

    def __init__(self) -> None:
        self._counter = ExpertCounter(by="domain")
        self._sums: dict[tuple[str, int], PromptSums] = {}
        # Of each domain.
        self._decisions: dict[tuple[str, int], NDArray[np.int64]] = {}

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table that holds all rows of each of its prompts."""
        if not table.num_rows:
            return
        prompts = ExpertCounter(by="prompt_id")
        prompts.add(table)
        group = self._counter.add_domains(prompts)
        for place, decisions in _count_decisions(table, prompts).items():
            rows = prompts.rows[place]
            sums = sum_prompts(
                rows[:, 1:], decisions, group=group[: len(rows)], num_groups=group.max() + 1
            )
            self._sums[place] = _add(self._sums[place], sums) if place in self._sums else sums
            self._add_decisions(place, decisions, group[: len(rows)])

    def add_counter(self, other: DomainCounter) -> None:
        """Add what another counter has counted of other prompts."""
        group = self._counter.add_counter(other._counter)
        for place, sums in other._sums.items():
            moved = _move(sums, group, num_groups=self._counter.num_groups)
            self._sums[place] = _add(self._sums[place], moved) if place in self._sums else moved
            decisions = other._decisions[place]
            self._add_decisions(place, decisions, group[: len(decisions)])

    def _add_decisions(
        self, place: tuple[str, int], decisions: NDArray[np.int64], group: NDArray[np.intp]
    ) -> None:
        total = np.zeros(self._counter.num_groups, dtype=np.int64)
        before = self._decisions.get(place, total[:0])
        total[: len(before)] = before
        np.add.at(total, group, decisions)
        self._decisions[place] = total

    def counts(self, layers: Iterable[RoutedLayer]) -> ExpertCounts:
        """Return the counts so far."""
        num_groups = self._counter.num_groups
        decisions = {
            place: np.pad(number, (0, num_groups - len(number)))
            for place, number in self._decisions.items()
        }
        counted = self._counter.counts(layers, decisions=decisions)
        return replace(
            counted,
            layers=tuple(
                replace(
                    layer,
                    prompt_sums=_resize(
                        self._sums[layer.stack, layer.layer],
                        (num_groups, layer.num_experts),
                    ),
                )
                for layer in counted.layers
            ),
        )


def _add(one: PromptSums, other: PromptSums) -> PromptSums:
    if one.products.shape != other.products.shape:
        shape = tuple(np.maximum(one.products.shape, other.products.shape).tolist())
        one, other = _resize(one, shape), _resize(other, shape)
    return PromptSums(
        num_prompts=one.num_prompts + other.num_prompts,
        num_choosing=one.num_choosing + other.num_choosing,
        squared_assignments=one.squared_assignments + other.squared_assignments,
        products=one.products + other.products,
        squared_decisions=one.squared_decisions + other.squared_decisions,
    )


def _move(sums: PromptSums, group: NDArray[np.intp], *, num_groups: int) -> PromptSums:
    """Return sums in which each group has another index."""

    def move(values: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = np.zeros((num_groups, *values.shape[1:]))
        moved[group[: len(values)]] = values
        return moved

    return PromptSums(**{name: move(values) for name, values in vars(sums).items()})


def _resize(sums: PromptSums, shape: tuple[int, ...]) -> PromptSums:
    """Return the sums padded with zeros or cut to a shape."""

    def pad(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # Columns beyond a layer's experts belong to other layers in the same table: zeros.
        kept = values[tuple(slice(size) for size in shape[: values.ndim])]
        missing = np.subtract(shape[: values.ndim], kept.shape)
        return np.pad(kept, [(0, int(number)) for number in missing])

    return PromptSums(
        num_prompts=pad(sums.num_prompts),
        num_choosing=pad(sums.num_choosing),
        squared_assignments=pad(sums.squared_assignments),
        products=pad(sums.products),
        squared_decisions=pad(sums.squared_decisions),
    )


def _count_decisions(
    table: pa.Table, prompts: ExpertCounter
) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Return the decisions of each prompt in each layer.

    Args:
        table: Rows, each decision's ranks from 0.
        prompts: Has counted them by prompt.
    """
    rank = table.column("rank").to_numpy()
    num_rows = int(rank.max()) + 1
    is_first = rank == 0
    if int(is_first.sum()) * num_rows == len(rank):
        return {place: rows.sum(axis=1) // num_rows for place, rows in prompts.rows.items()}
    # Layers differ in top-k, or in a layer's decisions.
    columns = ["prompt_id", "domain", "stack", "layer", "expert"]
    firsts = ExpertCounter(by="prompt_id")
    firsts.add(table.select(columns).filter(pa.array(is_first)))
    return {place: rows.sum(axis=1) for place, rows in firsts.rows.items()}
