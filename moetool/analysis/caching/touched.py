"""Distinct experts that batches of several sizes need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.steps import DECODE
from moetool.trace.decisions import NO_EXPERT
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import DecisionWindow

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WORD = 64


class DistinctCounter:
    """Counts the distinct experts of a layer in batches of 1, 2, 4, … tokens.

    Attributes:
        total: Sum over batches of each size. # (num_sizes,)
        random_total: The same expected of a random router, of which each token chooses as many
            experts: the sum of `E (1 - prod(1 - s / E'))` over batches with tokens of s experts,
            drawn from E' ids. # (num_sizes,)
        number: Batches of each size. # (num_sizes,)

    Args:
        num_experts: E, those with weights.
        num_ids: E', those and identity experts.
        num_sizes: Of batches.
    """

    def __init__(self, num_experts: int, num_ids: int, num_sizes: int) -> None:
        self._num_experts, self._num_ids = num_experts, num_ids
        self._num_words = -(-num_experts // _WORD)
        self.total = np.zeros(num_sizes, dtype=np.int64)
        self.random_total = np.zeros(num_sizes)
        self.number = np.zeros(num_sizes, dtype=np.int64)

    def add(self, experts: NDArray[np.int64], group: NDArray[np.int64]) -> None:
        """Count batches of consecutive tokens that belong to the same group, and are whole.

        Args:
            experts: Of each token; `NO_EXPERT` pads. # (num_tokens, top_k)
            group: Tokens of a group stand together. # (num_tokens,)
        """
        bits = self._set_bits(experts)
        # The chance that a random router doesn't choose an expert.
        left = 1 - np.minimum((experts != NO_EXPERT).sum(axis=1) / self._num_ids, 1)
        for size in range(len(self.total)):
            self.total[size] += int(np.bitwise_count(bits).sum(dtype=np.int64))
            self.random_total[size] += self._num_experts * float((1 - left).sum())
            self.number[size] += len(bits)
            second = _find_second(group)
            bits, group = bits[second - 1] | bits[second], group[second]
            left = left[second - 1] * left[second]

    def _set_bits(self, experts: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a bit for each expert of each token."""
        bits = np.zeros((len(experts), self._num_words), dtype=np.uint64)
        for column in experts.T:
            row = np.flatnonzero((column != NO_EXPERT) & (column < self._num_experts))
            word, bit = np.divmod(column[row], _WORD)
            bits[row, word] |= np.uint64(1) << bit.astype(np.uint64)
        return bits


def _find_second(group: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the second, fourth, … of each group, which are joined with those before them."""
    return np.flatnonzero(_count_within(group) % 2 == 1)


def _count_within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each token in its group, from 0."""
    number = np.arange(len(group))
    starts = np.ones(len(group), dtype=bool)
    starts[1:] = group[1:] != group[:-1]
    within: NDArray[np.int64] = number - np.maximum.accumulate(np.where(starts, number, 0))
    return within


class TouchedCounts:
    """Distinct experts of batches of one text, and of several texts, in all layers.

    Attributes:
        of_one: By layer, batches of consecutive tokens of a prompt.
        of_several: By layer, batches of the n-th tokens of as many prompts.
    """

    def __init__(
        self, places: Sequence[Place], num_experts: Sequence[int], num_ids: Sequence[int]
    ) -> None:
        self._places = places
        self.of_one, self.of_several = (
            [
                DistinctCounter(number, ids, len(BATCH_SIZES))
                for number, ids in zip(num_experts, num_ids, strict=True)
            ]
            for _ in range(2)
        )

    def add(self, window: DecisionWindow, *, only_decoded: bool) -> None:
        """Count the batches of a window.

        Args:
            only_decoded: Take only generated tokens for batches of several texts.
        """
        for index, place in enumerate(self._places):
            choices = window.layers.get(place)
            if choices is None:
                continue
            experts, token = choices.experts, choices.token
            self.of_one[index].add(experts, window.prompt[token])
            if only_decoded and window.phase is not None:
                is_decoded = window.phase[token] == DECODE
                experts, token = experts[is_decoded], token[is_decoded]
            within = _count_within(window.prompt[token])
            order = np.argsort(within, kind="stable")
            self.of_several[index].add(experts[order], within[order])
