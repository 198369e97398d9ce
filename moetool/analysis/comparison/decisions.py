"""Differences between the decisions of two traces in one layer, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.windows.window import LayerChoices

# Never equal to an expert, nor to `NO_EXPERT`.
_NO_EXPERT_EITHER = -2


@dataclass(frozen=True)
class DecisionChanges:
    """Decisions that both traces have for the same tokens of a layer.

    Attributes:
        token: Index into the tokens of the window. # (num_decisions,)
        overlap: Experts chosen by both, as a share of the larger of the two sets.
            # (num_decisions,)
        jaccard: Experts chosen by both, as a share of those chosen by either. # (num_decisions,)
        saturation: Experts chosen by both, as a share of the second's; NaN if that chose none.
            # (num_decisions,)
        is_changed: Whether the sets differ. # (num_decisions,)
        is_flipped: Whether the first choices differ; None without ranks. # (num_decisions,)
        weight_change: Share of weight that moved between experts, where the sets agree, else NaN;
            None without weights. # (num_decisions,)
        first: Experts of the first trace; `NO_EXPERT` pads. # (num_decisions, top_k)
        second: Experts of the second. # (num_decisions, other_top_k)
        first_weights: Of these experts; None without weights. # (num_decisions, top_k)
        second_weights: The same of the second trace. # (num_decisions, other_top_k)
        num_first: Experts that ran in the first. # (num_decisions,)
        num_second: Experts that ran in the second. # (num_decisions,)
        num_left_out: Decisions of both traces that the other lacks, or that chose no expert in
            either.
    """

    token: NDArray[np.int64]
    overlap: NDArray[np.float64]
    jaccard: NDArray[np.float64]
    saturation: NDArray[np.float64]
    is_changed: NDArray[np.bool_]
    is_flipped: NDArray[np.bool_] | None
    weight_change: NDArray[np.float64] | None
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weights: NDArray[np.float32] | None
    second_weights: NDArray[np.float32] | None
    num_first: NDArray[np.int64]
    num_second: NDArray[np.int64]
    num_left_out: int

    @property
    def has_ranks(self) -> bool:
        """Whether first choices are known."""
        return self.is_flipped is not None


def compare_decisions(
    first: LayerChoices, second: LayerChoices, *, has_ranks: bool
) -> DecisionChanges:
    """Return how far each decision of a layer differs between two traces.

    Args:
        first: Of some tokens.
        second: Of the same tokens; either trace may lack decisions.
        has_ranks: Whether both have their experts in the order of weight.
    """
    one, other = _find_common(first, second)
    experts, others = first.experts[one], second.experts[other]
    num_first = (experts != NO_EXPERT).sum(axis=1)
    num_second = (others != NO_EXPERT).sum(axis=1)
    shared = _count_shared(experts, others)
    larger = np.maximum(num_first, num_second)
    is_changed = shared < larger
    weights = None if first.weights is None else first.weights[one]
    other_weights = None if second.weights is None else second.weights[other]
    weight_change = None
    if weights is not None and other_weights is not None:
        weight_change = _compare_weights((experts, weights), (others, other_weights))
        weight_change[is_changed] = np.nan
    return DecisionChanges(
        token=first.token[one],
        overlap=shared / larger,
        jaccard=shared / (num_first + num_second - shared),
        saturation=shared / np.where(num_second > 0, num_second, np.nan),
        is_changed=is_changed,
        is_flipped=experts[:, 0] != others[:, 0] if has_ranks else None,
        weight_change=weight_change,
        first=experts,
        second=others,
        first_weights=weights,
        second_weights=other_weights,
        num_first=num_first,
        num_second=num_second,
        num_left_out=len(first.token) + len(second.token) - 2 * len(one),
    )


def _find_common(
    first: LayerChoices, second: LayerChoices
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the decisions of both for the same tokens, where at least one chose an expert."""
    if np.array_equal(first.token, second.token):
        one = other = np.arange(len(first.token))
    else:
        _, one, other = np.intersect1d(
            first.token, second.token, assume_unique=True, return_indices=True
        )
    ran = (first.experts[one] != NO_EXPERT).any(axis=1)
    ran |= (second.experts[other] != NO_EXPERT).any(axis=1)
    return one[ran], other[ran]


def _count_shared(experts: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of experts that each pair of rows has in common."""
    mine, theirs = experts.T.astype(np.int32), others.T.astype(np.int32)
    theirs[theirs == NO_EXPERT] = _NO_EXPERT_EITHER
    shared = np.zeros(len(experts), dtype=np.int64)
    for expert in mine:
        for other in theirs:
            shared += expert == other
    return shared


def _compare_weights(
    first: tuple[NDArray[np.int64], NDArray[np.float32]],
    second: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> NDArray[np.float64]:
    """Return the share of weight that moved; of use only for rows with the same experts.

    The share is the sum of absolute differences over the sum of all weights of both: 0 for equal
    weights, and 1 if no expert has weight in both.
    """
    # Rows without an expert come last, so that equal sets of different top-k are aligned.
    one, other = (_sort_weights(*each) for each in (first, second))
    width = min(one.shape[1], other.shape[1])
    total = one.sum(axis=1) + other.sum(axis=1)
    moved = np.abs(one[:, :width] - other[:, :width]).sum(axis=1)
    share: NDArray[np.float64] = moved / np.where(total > 0, total, np.nan)
    return share


def _sort_weights(experts: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    order = np.argsort(-experts, axis=1, kind="stable")
    return np.take_along_axis(weights, order, axis=1).astype(np.float64)
