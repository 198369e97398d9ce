"""Counts of one routed layer, window by window, from which its balance is measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.between_prompts.spread import PromptSpread
from moetool.analysis.balance.capacity.batches import BatchCutter
from moetool.analysis.balance.capacity.drops import DropCounter
from moetool.trace.decisions import PHASES
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.words import count_values
from moetool.trace.windows.window import DecisionWindow, LayerChoices


class PartCounter:
    """Counts assignments and decisions by a part of the tokens, such as a domain.

    Attributes:
        assignments: # (num_parts, num_experts)
        num_decisions: By how many experts a decision chose. # (num_parts, top_k + 1)
    """

    def __init__(self, *, num_experts: int, top_k: int) -> None:
        self.assignments = np.zeros((0, num_experts), dtype=np.int64)
        self.num_decisions = np.zeros((0, top_k + 1), dtype=np.int64)

    def add(self, part: NDArray[np.int64], experts: NDArray[np.int64]) -> None:
        """Count decisions, except those whose part is below 0.

        Args:
            part: Index of each decision's part. # (num_decisions,)
            experts: Chosen ids; those below 0 were not chosen. # (num_decisions, top_k)
        """
        if not len(part):
            return
        num_parts = max(len(self.assignments), int(part.max()) + 1)
        size = (experts >= 0).sum(axis=1)
        num_experts = self.assignments.shape[1]
        self.assignments = _pad_to(self.assignments, (num_parts, num_experts))
        width = max(self.num_decisions.shape[1], int(size.max()) + 1)
        self.num_decisions = _pad_to(self.num_decisions, (num_parts, width))
        key = part[:, None] * num_experts + experts
        key = key[(experts >= 0) & (part >= 0)[:, None]]
        self.assignments += np.bincount(key, minlength=self.assignments.size).reshape(
            self.assignments.shape
        )
        key = (part * width + size)[part >= 0]
        self.num_decisions += np.bincount(key, minlength=self.num_decisions.size).reshape(
            self.num_decisions.shape
        )


class LayerMeter:
    """Counts the decisions of one layer.

    Attributes:
        shape: The layer.
        num_experts: Its experts, including identity experts.
        groups: Counts by group.
        phases: Counts by phase; None if the trace has none.
        spread: Of the experts' load between prompts.
        drops: Of its batches.
        expected_unused: Sum over prompts of the number of experts that a uniform random router
            would not use.

    Args:
        shape: The layer.
        tokens_per_batch: As `BatchCutter` takes it.
    """

    def __init__(self, shape: RoutedLayer, *, tokens_per_batch: int | None) -> None:
        self.shape = shape
        self.num_experts = shape.num_experts + shape.num_identity_experts
        self.groups = PartCounter(num_experts=self.num_experts, top_k=shape.top_k)
        self.phases: PartCounter | None = None
        self.spread = PromptSpread(self.num_experts)
        self.drops = DropCounter(num_experts=self.num_experts, top_k=shape.top_k)
        self.expected_unused = 0.0
        self._cutter = BatchCutter(tokens_per_batch)

    def add(self, window: DecisionWindow, choices: LayerChoices) -> None:
        """Count the layer's decisions in a window."""
        prompt = window.prompt[choices.token]
        self.groups.add(window.group[choices.token], choices.experts)
        if window.phase is not None:
            if self.phases is None:
                self.phases = PartCounter(num_experts=self.num_experts, top_k=self.shape.top_k)
            self.phases.add(window.phase[choices.token].astype(np.int64), choices.experts)
        self._add_prompts(prompt, choices.experts)
        # In 16 bits, as a trace stores them: a batch may hold many.
        experts = choices.experts.astype(np.int16)
        columns = (experts,) if choices.weights is None else (experts, choices.weights)
        self.drops.add(self._cutter.cut(prompt, columns))

    def finish(self) -> None:
        """Count the last batch."""
        self.drops.add(self._cutter.finish())

    def _add_prompts(self, prompt: NDArray[np.int64], experts: NDArray[np.int64]) -> None:
        # Prompts of a window as 0, 1, …, in their order.
        first = int(prompt[0])
        chosen = experts >= 0
        key = ((prompt - first)[:, None] * self.num_experts + experts)[chosen]
        cells, number = count_values(key)
        self.spread.add(cells // self.num_experts, cells % self.num_experts, number)
        size = chosen.sum(axis=1)
        with np.errstate(divide="ignore"):
            log = np.log1p(-size / self.num_experts)
        starts = np.flatnonzero(np.diff(prompt, prepend=-1))
        ran = np.add.reduceat(size, starts) > 0
        unused = np.exp(np.add.reduceat(log, starts))[ran]
        self.expected_unused += float(self.num_experts * unused.sum())


def name_phases(counter: PartCounter) -> list[tuple[int, str]]:
    """Return the index and name of each phase that has decisions."""
    return [
        (index, PHASES[index])
        for index in range(len(counter.num_decisions))
        if counter.num_decisions[index].any()
    ]


def _pad_to(table: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    missing = [(0, size - have) for size, have in zip(shape, table.shape, strict=True)]
    return np.pad(table, missing) if any(number for _, number in missing) else table
