"""Kinds of batches: those with as many decisions of each size in each tenth drop as many at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.mixing import mix_bits

NUM_DECILES = 10
# Batches with shorter decisions that are kept, each as its numbers of decisions. The mean over a
# sample of them varies by a few per cent of what a single batch does.
_MOST_KEPT = 512


def find_decile(place: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the decile of places, from 0, in batches of the given sizes."""
    decile: NDArray[np.int64] = place * NUM_DECILES // size
    return decile


def describe_full_batch(num_tokens: int, *, top_k: int) -> NDArray[np.int64]:
    """Return the decisions of a batch, all of top-k, by decile and size: (10, top_k + 1)."""
    numbers = np.zeros((NUM_DECILES, top_k + 1), dtype=np.int64)
    # A place belongs to the decile d if d * size <= 10 * place < (d + 1) * size.
    starts = -(-np.arange(NUM_DECILES + 1) * num_tokens // NUM_DECILES)
    numbers[:, top_k] = np.diff(starts)
    return numbers


class BatchKinds:
    """Batches of one layer, by the sizes of their decisions.

    Batches whose decisions all choose top-k experts are counted by their number of tokens. Of the
    others, a sample is kept: each batch with the same chance.

    Attributes:
        full: How many batches of top-k decisions had each number of tokens.
        num_others: Batches with another decision.

    Args:
        top_k: Of the layer.
    """

    def __init__(self, *, top_k: int) -> None:
        self.full: dict[int, int] = {}
        self.num_others = 0
        self._top_k = top_k
        # By number of the batch. # (10, num_sizes) each
        self._kept: dict[int, NDArray[np.int64]] = {}
        self._hidden_bits = 0

    def add(self, sizes: NDArray[np.int64], decision: NDArray[np.int64]) -> None:
        """Add whole batches.

        Args:
            sizes: Tokens of each. # (num_batches,)
            decision: Experts that each decision chose, batch by batch. # (num_decisions,)
        """
        starts = np.cumsum(sizes) - sizes
        is_full = np.logical_and.reduceat(decision == self._top_k, starts)
        self.add_full(sizes[is_full])
        others = np.flatnonzero(~is_full)
        numbers = self.num_others + np.arange(len(others))
        self.num_others += len(others)
        while len(self._kept) + int(self._takes(numbers).sum()) > _MOST_KEPT:
            self._hidden_bits += 1
            held = np.array(list(self._kept), dtype=np.int64)
            for number in held[~self._takes(held)].tolist():
                del self._kept[number]
        for index in np.flatnonzero(self._takes(numbers)).tolist():
            start, size = int(starts[others[index]]), int(sizes[others[index]])
            mine = decision[start : start + size]
            width = max(self._top_k, int(mine.max())) + 1
            decile = find_decile(np.arange(size), np.full(size, size))
            counted = np.bincount(decile * width + mine, minlength=NUM_DECILES * width)
            self._kept[int(numbers[index])] = counted.reshape(NUM_DECILES, width)

    def add_full(self, sizes: NDArray[np.int64]) -> None:
        """Add batches of top-k decisions, of which the numbers of tokens are given."""
        for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
            self.full[int(size)] = self.full.get(int(size), 0) + int(count)

    def list_others(self) -> tuple[NDArray[np.int64], float]:
        """Return batches with another decision, and how many batches each of them stands for.

        Returns:
            Decisions by decile and size. # (num_kept, 10, num_sizes)
        """
        kept = list(self._kept.values())
        width = max((each.shape[1] for each in kept), default=self._top_k + 1)
        padded = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in kept]
        if not padded:
            return np.zeros((0, NUM_DECILES, width), dtype=np.int64), 0.0
        return np.stack(padded), self.num_others / len(padded)

    def _takes(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which batches belong to the sample; those that it loses never come back."""
        mixed = mix_bits(numbers.astype(np.uint64))
        taken: NDArray[np.bool_] = (mixed & np.uint64((1 << self._hidden_bits) - 1)) == 0
        return taken
