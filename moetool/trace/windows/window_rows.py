"""Rows of a trace as runs of one prompt, layer and group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.trace.scanning.columns import find_changes

# Rows of a run from which on it is faster to copy runs than to copy rows by their index.
_LONG_RUN = 48
_OF_RUNS = ("prompt", "place", "group", "size")
_OF_ROWS = ("position", "expert", "rank", "weight", "token_id", "phase", "piece")


@dataclass(frozen=True)
class WindowRows:
    """Rows of a trace as numbers, of the width that they are stored in.

    Attributes:
        prompt: Index of the prompt. # (num_runs,)
        place: Index of the layer among those that are read. # (num_runs,)
        group: Index of the group. # (num_runs,)
        size: Number of rows. # (num_runs,)
        position: As in the trace's column; expert, rank, weight and token id, too. # (num_rows,)
        phase: Index into `PHASES`, or -1. # (num_rows,)
        piece: Index into the reader's pieces. # (num_rows,)
    """

    prompt: NDArray[np.int64]
    place: NDArray[np.int64]
    group: NDArray[np.int64]
    size: NDArray[np.int64]
    position: NDArray[np.int32]
    expert: NDArray[np.int16]
    rank: NDArray[np.int16] | None
    weight: NDArray[np.float32] | None
    token_id: NDArray[np.int32] | None
    phase: NDArray[np.int8] | None
    piece: NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.position)

    def sort(self, *, has_rank: bool) -> WindowRows:
        """Return the rows in the order of layer, prompt, position and, if asked, rank."""
        place, prompt, group = (
            np.repeat(values, self.size) for values in (self.place, self.prompt, self.group)
        )
        keys: list[NDArray[Any]] = [self.position, prompt, place]
        if has_rank and self.rank is not None:
            keys.insert(0, self.rank)
        order = np.lexsort(keys)
        place, prompt, group = place[order], prompt[order], group[order]
        starts = np.flatnonzero(find_changes(place, prompt, group))
        columns: dict[str, Any] = {}
        for name in _OF_ROWS:
            values = getattr(self, name)
            columns[name] = None if values is None else values[order]
        return WindowRows(
            prompt=prompt[starts],
            place=place[starts],
            group=group[starts],
            size=np.diff(starts, append=len(order)),
            **columns,
        )


def list_runs(parts: Sequence[WindowRows]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the prompt and the layer of each run of several parts, one after the other."""
    prompts = [part.prompt for part in parts]
    return np.concatenate(prompts), np.concatenate([part.place for part in parts])


def take_runs(parts: Sequence[WindowRows], runs: NDArray[np.intp]) -> WindowRows:
    """Return some runs of several parts.

    Args:
        parts: At least one; all with the same columns.
        runs: Index of each run, with those of all parts laid end to end.
    """
    taken = {
        name: np.concatenate([getattr(part, name) for part in parts])[runs] for name in _OF_RUNS
    }
    num_rows = int(taken["size"].sum())
    first = np.cumsum([0, *(len(part.size) for part in parts)])  # (num_parts + 1,)
    part_of = np.searchsorted(first, runs, side="right") - 1
    starts = np.concatenate([np.cumsum(part.size) - part.size for part in parts])[runs]
    columns: dict[str, Any] = {}
    if len(runs) and num_rows >= _LONG_RUN * len(runs):
        slices = list(_join_slices(part_of, starts, starts + taken["size"]))
        for name in _OF_ROWS:
            values = [getattr(part, name) for part in parts]
            columns[name] = (
                None
                if values[0] is None
                else np.concatenate([values[part][start:end] for part, start, end in slices])
            )
    else:
        before = np.cumsum([0, *map(len, parts)])
        offsets = np.cumsum(taken["size"]) - taken["size"]
        index = np.repeat(starts + before[part_of] - offsets, taken["size"]) + np.arange(num_rows)
        for name in _OF_ROWS:
            values = [getattr(part, name) for part in parts]
            columns[name] = None if values[0] is None else np.concatenate(values)[index]
    return WindowRows(**taken, **columns)


def _join_slices(
    part_of: NDArray[np.intp], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterable[tuple[int, int, int]]:
    """Yield part, start and end of slices, with those that follow each other made one."""
    follows = (part_of[1:] == part_of[:-1]) & (starts[1:] == ends[:-1])
    first = np.flatnonzero(~np.concatenate([[False], follows]))
    last = np.append(first[1:], len(starts)) - 1
    return zip(part_of[first].tolist(), starts[first].tolist(), ends[last].tolist(), strict=True)
