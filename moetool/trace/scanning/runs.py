"""Rows in the order that moetool writes, recognised and checked without sorting any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.scanning.columns import WordColumn, find_changes, take_numbers, take_words
from moetool.trace.scanning.rows_of_decisions import Rows

# The experts of larger decisions are compared by sorting.
_LARGEST_COMPARED = 64
# Stretches of decisions of one size that are checked one by one.
_MOST_STRETCHES = 1024
_LARGEST_SIZE = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Runs:
    """A table as runs of rows of one (prompt, domain, stack, layer), and decisions within them.

    Attributes:
        prompt: As in the trace's column; domain, stack, layer, position, expert, rank and weight,
            too. # (num_rows,)
        starts: First row of each run. # (num_runs,)
        decisions: First row of each decision. # (num_decisions,)
        first: Index of the first decision of each run. # (num_runs,)
    """

    prompt: WordColumn
    domain: WordColumn
    stack: WordColumn
    layer: NDArray[np.int16]
    position: NDArray[np.int32]
    expert: NDArray[np.int16]
    rank: NDArray[np.int16] | None
    weight: NDArray[np.float32] | None
    starts: NDArray[np.intp]
    decisions: NDArray[np.intp]
    first: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.layer)

    def take(
        self,
        decisions: NDArray[np.intp],
        *,
        key: NDArray[np.int64],
        run: NDArray[np.intp],
        file: int,
    ) -> Rows:
        """Return the rows of some decisions.

        Args:
            decisions: Index of each.
            key: One number for each run.
            run: Index of the run of each decision.
            file: Index of the file that holds the table.
        """
        starts = self.decisions[decisions]
        sizes = np.append(self.decisions, self.num_rows)[decisions + 1] - starts
        offsets = np.cumsum(sizes) - sizes
        index = np.repeat(starts - offsets, sizes) + np.arange(int(sizes.sum()))
        return Rows(
            key=np.repeat(key[run], sizes),
            position=self.position[index].astype(np.int64),
            expert=self.expert[index].astype(np.int64),
            rank=None if self.rank is None else self.rank[index].astype(np.int64),
            weight=None if self.weight is None else self.weight[index],
            file=np.full(len(index), file, dtype=np.int32),
            is_carried=np.zeros(len(index), dtype=bool),
        )


def find_runs(table: pa.Table) -> Runs:
    """Return the runs of a table with `prompt_id`, `position`, `layer` and `expert`.

    Args:
        table: With the types of the schema, and at least one row.
    """
    prompt, domain, stack = (take_words(table, name) for name in ("prompt_id", "domain", "stack"))
    layer, position, expert = (
        table.column(name).to_numpy() for name in ("layer", "position", "expert")
    )
    changes = find_changes(prompt.codes, domain.codes, stack.codes, layer)
    starts = np.flatnonzero(changes)
    changes[1:] |= position[1:] != position[:-1]
    decisions = np.flatnonzero(changes)
    return Runs(
        prompt=prompt,
        domain=domain,
        stack=stack,
        layer=layer,
        position=position,
        expert=expert,
        rank=take_numbers(table, "rank"),
        weight=take_numbers(table, "weight"),
        starts=starts,
        decisions=decisions,
        first=np.searchsorted(decisions, starts),
    )


def are_sound(runs: Runs, *, is_checked: bool, has_weight_order: bool = True) -> bool:
    """Return whether no check of a row or of a decision can fail, except of the outermost decisions.

    The first and the last decision of a table may continue in others, so their experts, ranks and
    first choices are not looked at. Positions ascend in each run, whose other decisions all have
    the same number of rows. A table that is not sound may still pass every check.

    Args:
        runs: The table.
        is_checked: Look at more than what the numbers mean: at weights and repetitions.
        has_weight_order: Look at whether rank 0 has the largest weight.
    """
    position = runs.position[runs.decisions]
    ascends = np.ones(len(position), dtype=bool)
    ascends[1:] = position[1:] > position[:-1]
    ascends[runs.first] = position[runs.first] >= 0
    if not ascends.all() or runs.layer[runs.starts].min() < 0 or runs.expert.min() < NO_EXPERT:
        return False
    if runs.rank is not None and runs.rank.min() < 0:
        return False
    if is_checked and runs.weight is not None and not _is_finite(runs.weight):
        return False
    stretches = _find_stretches(runs)
    if stretches is None:
        return False
    return not is_checked or all(
        _is_faultless(runs, start, end, k, has_weight_order=has_weight_order)
        for start, end, k in stretches
    )


def _is_finite(weight: NDArray[np.float32]) -> bool:
    """Return whether all weights are numbers from 0 on; NaN would be both minimum and maximum."""
    return bool(weight.min() >= 0 and weight.max() < np.inf)


def _find_stretches(runs: Runs) -> list[tuple[int, int, int]] | None:
    """Return first row, end and decision size of stretches of decisions of one size.

    None if a run has decisions of several sizes, one is huge, or there are many stretches.
    """
    inner = runs.decisions[1:]
    if len(inner) < 2:
        return []
    sizes = np.diff(inner)
    if int(sizes.max()) > _LARGEST_SIZE:
        return None
    (changes,) = np.nonzero(sizes[1:] != sizes[:-1])
    if not len(changes):
        return [(int(inner[0]), int(inner[-1]), int(sizes[0]))]
    bounds = inner[np.concatenate([[0], changes + 1, [len(sizes)]])]
    if len(bounds) > _MOST_STRETCHES or not np.isin(bounds[1:-1], runs.starts).all():
        return None
    kinds = sizes[np.concatenate([[0], changes + 1])]
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), kinds.tolist(), strict=True))


def _is_faultless(runs: Runs, start: int, end: int, top_k: int, *, has_weight_order: bool) -> bool:
    """Return whether decisions of `top_k` rows each have no fault."""
    rank = _count_ranks(top_k, _round_up(end - start))[: end - start]
    expert = runs.expert[start:end]
    if _repeats_expert(expert, rank, top_k):
        return False
    if runs.rank is None:
        return True
    if not np.array_equal(runs.rank[start:end], rank):
        return False
    if runs.weight is None or not has_weight_order:
        return True
    return _has_largest_first(runs.weight[start:end], rank, top_k)


def _repeats_expert(expert: NDArray[np.int16], rank: NDArray[np.int16], top_k: int) -> bool:
    has_pads = bool(expert.min() < 0)
    if top_k > _LARGEST_COMPARED:
        ordered = np.sort(expert.reshape(-1, top_k), axis=1)
        same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        return bool(same.any())
    for distance in range(1, top_k):
        same = expert[distance:] == expert[:-distance]
        same &= rank[distance:] >= distance  # Both are of one decision.
        if has_pads:
            same &= expert[distance:] >= 0
        if same.any():
            return True
    return False


def _has_largest_first(weight: NDArray[np.float32], rank: NDArray[np.int16], top_k: int) -> bool:
    rises = weight[1:] > weight[:-1]
    rises &= rank[1:] > 0
    if not rises.any():  # As moetool writes them: in descending order.
        return True
    by_decision = weight.reshape(-1, top_k)
    return all((by_decision[:, 0] >= by_decision[:, other]).all() for other in range(1, top_k))


@lru_cache(maxsize=4)
def _count_ranks(top_k: int, num_rows: int) -> NDArray[np.int16]:
    """Return the ranks of decisions of `top_k` rows: 0, 1, …, 0, 1, and so on."""
    ranks: NDArray[Any] = np.tile(np.arange(top_k, dtype=np.int16), -(-num_rows // top_k))
    ranks.flags.writeable = False
    return ranks


def _round_up(num_rows: int) -> int:
    return 1 << (num_rows - 1).bit_length()
