"""Facts about a whole trace that its caches need to know from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.caching.simulation.steps import DECODE, NEVER
from moetool.analysis.statistics.halves import split_prompts
from moetool.trace.decisions import PHASES
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader


@dataclass(frozen=True)
class FirstPass:
    """The load of each half of the prompts, and when each expert is needed next.

    Attributes:
        halves: The half of each prompt, 0 or 1. # (num_prompts,)
        load: Of each half, phase, layer and expert, the tokens that chose it.
            # (2, num_phases, num_layers, num_ids)
        next_uses: For each window, the first token after it that needs each expert of each layer,
            counted from the beginning of the trace. # (num_layers, num_ids) each
        num_decoded: Tokens of the phase `decode`.
    """

    halves: NDArray[np.int64]
    load: NDArray[np.int64]
    next_uses: Sequence[NDArray[np.int64]]
    num_decoded: int

    def rank_experts(self) -> NDArray[np.int64]:
        """Return the rank of each expert by the load of the other half, 0 for the largest.

        Each phase has its own ranks; one without tokens has those of both phases together.

        Returns:
            # (2, num_phases, num_layers, num_ids)
        """
        other = self.load[::-1]
        is_empty = ~other.any(axis=-1, keepdims=True)
        other = np.where(is_empty, other.sum(axis=1, keepdims=True), other)
        order = np.argsort(-other, axis=-1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(order.shape[-1])[None, None, None], axis=-1)
        return rank


def read_first_pass(reader: DecisionReader, num_experts: Sequence[int]) -> FirstPass:
    """Return what one reading of a trace says.

    Args:
        reader: Reads the phase, if the trace has one.
        num_experts: Of each of its layers.
    """
    places: list[Place] = [(layer.stack, layer.layer) for layer in reader.layers]
    shape = (len(places), max(num_experts))
    halves = split_prompts(reader.prompts).astype(np.int64)
    load = np.zeros((2, len(PHASES), *shape), dtype=np.int64)
    first_uses: list[NDArray[np.int64]] = []
    num_tokens = num_decoded = 0
    for window in reader:
        if window.phase is not None:
            num_decoded += int((window.phase == DECODE).sum())
        is_decoded = np.zeros(len(window.prompt), dtype=np.int64)
        if window.phase is not None:
            is_decoded[window.phase == DECODE] = 1
        # One number for each half and phase.
        part = halves[window.prompt] * len(PHASES) + is_decoded
        first = np.full(shape, NEVER, dtype=np.int64)
        for index, place in enumerate(places):
            if place not in window.layers:
                continue
            choices, size = window.layers[place], num_experts[index]
            experts, token = choices.experts, choices.token
            valid = (experts >= 0) & (experts < size)
            which = np.broadcast_to(part[token][:, None], experts.shape)
            cell = which[valid] * size + experts[valid]
            counted = np.bincount(cell, minlength=2 * len(PHASES) * size)
            load[:, :, index, :size] += counted.reshape(2, len(PHASES), size)
            # Written from the last token to the first, so that the first stays.
            late_first = experts[::-1][valid[::-1]]
            tokens = np.broadcast_to(token[:, None], experts.shape)[::-1][valid[::-1]]
            first[index, late_first] = tokens + num_tokens
        first_uses.append(first)
        num_tokens += len(window.prompt)
    after = np.full(shape, NEVER, dtype=np.int64)
    next_uses = []
    for first in reversed(first_uses):
        next_uses.append(after)
        after = np.minimum(after, first)
    return FirstPass(halves, load, next_uses[::-1], num_decoded)
