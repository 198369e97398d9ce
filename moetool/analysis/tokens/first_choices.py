"""First choices of tokens: the expert with the largest weight of each decision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.trace.decisions import NO_EXPERT
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow, LayerChoices

Ints = NDArray[np.int64]

NO_FIRST_CHOICE = (
    "The trace has neither ranks nor weights: what depends on the first choice is unknown."
)


def has_first_choices(reader: DecisionReader) -> bool:
    """Return whether a trace says which expert of a decision is the first choice."""
    return reader.has_ranks or "weight" in reader.columns


def find_first_choices(choices: LayerChoices, *, has_ranks: bool) -> Ints:
    """Return the expert of each decision's largest weight, -1 where none ran.

    Without ranks, it is unknown which of several equally large weights came first: -1 as well.
    """
    if has_ranks or choices.weights is None or not len(choices.experts):
        return choices.experts[:, 0]
    weights = np.where(choices.experts >= 0, choices.weights, -np.inf)
    best = weights.argmax(axis=1)[:, None]
    first = np.take_along_axis(choices.experts, best, axis=1)[:, 0]
    is_tied = (weights == weights.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return np.where(is_tied, NO_EXPERT, first)


def take_token_ids(window: DecisionWindow) -> Ints:
    """Return the token ids of a window.

    Raises:
        InputError: The trace has none.
    """
    if window.token_id is None:
        raise InputError(
            "The trace has no column 'token_id'.",
            hint="Add the token ids of its rows, or trace again with moetool route-trace.",
        )
    return window.token_id
