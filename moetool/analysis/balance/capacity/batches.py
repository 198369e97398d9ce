"""Batches of one layer's decisions: a prompt each, or a number of consecutive tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT


@dataclass(frozen=True)
class Batches:
    """Whole batches of decisions, one after the other.

    Attributes:
        starts: Index of the first decision of each batch. # (num_batches,)
        sizes: Decisions of each batch. # (num_batches,)
        columns: Arrays with a row for each decision, such as experts and weights.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    columns: tuple[NDArray[Any], ...]

    def split(self, most: int) -> Iterator[Batches]:
        """Yield the batches again, no more than a number of them at a time."""
        for first in range(0, len(self.sizes), most):
            sizes = self.sizes[first : first + most]
            begin = int(self.starts[first])
            end = begin + int(sizes.sum())
            yield Batches(
                starts=self.starts[first : first + most] - begin,
                sizes=sizes,
                columns=tuple(column[begin:end] for column in self.columns),
            )

    @property
    def batch(self) -> NDArray[np.int64]:
        """Return the index of each decision's batch, as an array (num_decisions,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def place(self) -> NDArray[np.int64]:
        """Return each decision's place in its batch from 0, as an array (num_decisions,)."""
        return np.arange(int(self.sizes.sum())) - np.repeat(self.starts, self.sizes)


class BatchCutter:
    """Cuts a layer's decisions, which come in the order of the trace, into whole batches.

    A trace records which prompt a token belongs to, but not which prompts ran together: by default,
    each prompt is a batch.

    Args:
        tokens_per_batch: Consecutive decisions that make a batch, of whatever prompts; the last
            batch may have fewer. None for a batch from each prompt, whose decisions follow each
            other.
    """

    def __init__(self, tokens_per_batch: int | None = None) -> None:
        self._tokens_per_batch = tokens_per_batch
        # The prompt of each decision that is left, then its other columns.
        self._left: list[tuple[NDArray[Any], ...]] = []

    def cut(self, prompt: NDArray[np.int64], columns: tuple[NDArray[Any], ...]) -> Batches | None:
        """Return the batches that are complete; the rest waits for more decisions.

        Args:
            prompt: Prompt of each decision.
            columns: With a row for each decision.
        """
        size = self._tokens_per_batch
        self._left.append((prompt[:, None], *columns))
        num_held = sum(len(part[0]) for part in self._left)
        if size is not None and num_held < size:
            return None
        joined = self._join()
        if size is not None:
            starts = np.arange(0, num_held, size)
            whole = num_held - num_held % size
        else:
            starts = np.flatnonzero(np.diff(joined[0][:, 0], prepend=-1))
            whole = int(starts[-1]) if len(starts) else 0
        self._left = [tuple(column[whole:] for column in joined)] if whole < num_held else []
        return _make_batches(starts[starts < whole], [column[:whole] for column in joined[1:]])

    def finish(self) -> Batches | None:
        """Return the last batch, of the decisions that are left; None if there are none."""
        if not self._left:
            return None
        joined, self._left = self._join(), []
        return _make_batches(np.zeros(1, dtype=np.int64), joined[1:])

    def _join(self) -> tuple[NDArray[Any], ...]:
        if len(self._left) == 1:
            return self._left[0]
        return tuple(_concatenate(parts) for parts in zip(*self._left, strict=True))


def _concatenate(parts: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """Return arrays one after the other, the narrower ones padded as decisions are."""
    width = max(part.shape[1] for part in parts)
    filler = 0 if parts[0].dtype.kind == "f" else NO_EXPERT
    padded = [
        np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=filler) for part in parts
    ]
    return np.concatenate(padded)


def _make_batches(starts: NDArray[np.int64], columns: Sequence[NDArray[Any]]) -> Batches | None:
    if not len(starts):
        return None
    sizes = np.diff(starts, append=len(columns[0]))
    return Batches(starts=starts.astype(np.int64), sizes=sizes, columns=tuple(columns))
