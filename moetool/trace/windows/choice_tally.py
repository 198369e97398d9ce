"""Choices of a trace that ran an expert, and those that ran none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.metadata import RoutedLayer
from moetool.trace.windows.window import DecisionWindow
from moetool.trace.windows.window_rows import WindowRows
from moetool.wording import number_of


class ChoiceTally:
    """Counts choices window by window.

    Where experts choose tokens, an empty place of a decision is not a choice.

    Attributes:
        num_assignments: Choices that ran an expert, in all layers.

    Args:
        layers: The layers that are read.
    """

    def __init__(self, layers: Sequence[RoutedLayer]) -> None:
        self.num_assignments = 0
        self._of_experts = {
            (layer.stack, layer.layer): layer for layer in layers if layer.is_chosen_by_experts
        }
        # By tokens: choices, and those of them that ran no expert.
        self._num_choices = self._num_dropped = 0
        # By experts: decisions, and those of them without an expert.
        self._num_decisions = self._num_unserved = 0

    def add(self, rows: WindowRows, window: DecisionWindow) -> None:
        """Count a window, given its rows as well."""
        num_ran = int((rows.expert != NO_EXPERT).sum())
        self.num_assignments += num_ran
        if not self._of_experts:
            self._num_choices += len(rows)
            self._num_dropped += len(rows) - num_ran
            return
        for place, choices in window.layers.items():
            is_empty = choices.experts == NO_EXPERT
            if place in self._of_experts:
                self._num_decisions += len(is_empty)
                self._num_unserved += int(is_empty.all(axis=1).sum())
            else:
                self._num_choices += is_empty.size
                self._num_dropped += int(is_empty.sum())

    def describe(self) -> Iterator[str]:
        """Yield what a reader of any result should know."""
        if self._num_dropped:
            yield f"{self._num_dropped:,} of {self._num_choices:,} choices ran no expert."
        if self._num_decisions:
            most = max(layer.top_k for layer in self._of_experts.values())
            yield (
                f"In {number_of(len(self._of_experts), 'layer')} experts choose tokens: a token has "
                f"0 to {most} experts, and {self._num_unserved:,} of {self._num_decisions:,} "
                "decisions have none."
            )
