"""Sums over prompts that every score is made of, for all prompts and for random halves of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.halves import split_prompts

NUM_SPLITS = 16
# All prompts, then both halves of each split.
NUM_PARTS = 1 + 2 * NUM_SPLITS
ALL = 0


@dataclass(frozen=True)
class PartSums:
    """Sums over the prompts of each part; parts are all prompts, and both halves of each split.

    Attributes:
        decisions: # (num_parts,)
        sizes: Decisions by the number of experts that ran. # (num_parts, top_k + 1)
        prompts: Prompts with a decision. # (num_parts,)
        assignments: # (num_parts, num_experts)
        weights: Sum of the routing weights; None if there are none. # (num_parts, num_experts)
        token_shares: Sum over prompts of the share of the prompt's assignments that the expert
            gets. # (num_parts, num_experts)
        mean_weights: Sum over prompts of the expert's weights per token of the prompt; None
            without weights. # (num_parts, num_experts)
    """

    decisions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    prompts: NDArray[np.int64]
    assignments: NDArray[np.int64]
    weights: NDArray[np.float64] | None
    token_shares: NDArray[np.float64]
    mean_weights: NDArray[np.float64] | None

    def __add__(self, other: PartSums) -> PartSums:
        return PartSums(
            decisions=self.decisions + other.decisions,
            sizes=self.sizes + other.sizes,
            prompts=self.prompts + other.prompts,
            assignments=self.assignments + other.assignments,
            weights=_add(self.weights, other.weights),
            token_shares=self.token_shares + other.token_shares,
            mean_weights=_add(self.mean_weights, other.mean_weights),
        )


def sum_prompts(
    assignments: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    sizes: NDArray[np.int64],
    *,
    members: NDArray[np.bool_],
    top_k: int,
) -> PartSums:
    """Return the sums over prompts, of which each is complete.

    Args:
        assignments: How often each prompt chose each expert. # (num_prompts, num_experts)
        weights: Sum of the weights of these assignments. # (num_prompts, num_experts)
        sizes: Decisions by the number of experts that ran. # (num_prompts, top_k + 1)
        members: Which prompts are in which part, see `divide_prompts`. # (num_parts, num_prompts)
        top_k: Assignments per decision.
    """
    decisions = sizes.sum(axis=1)  # (num_prompts,)
    ran = decisions > 0
    share = assignments / np.maximum(1, decisions * top_k)[:, None]
    part = members.astype(np.float64)
    return PartSums(
        # Sums of whole numbers below 2**53 are exact.
        decisions=np.rint(part @ decisions).astype(np.int64),
        sizes=np.rint(part @ sizes).astype(np.int64),
        prompts=(members & ran).sum(axis=1),
        assignments=np.rint(part @ assignments).astype(np.int64),
        weights=None if weights is None else part @ weights,
        token_shares=part @ share,
        mean_weights=None
        if weights is None
        else part @ (weights / np.maximum(1, decisions)[:, None]),
    )


def divide_prompts(prompt_ids: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of all prompts of a trace are in which part.

    Returns:
        # (num_parts, num_prompts)
    """
    parts = [np.ones(len(prompt_ids), dtype=np.bool_)]
    for seed in range(NUM_SPLITS):
        half = split_prompts(prompt_ids, seed=seed)
        parts += [half, ~half]
    return np.stack(parts)


def _add(
    first: NDArray[np.float64] | None, second: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    return None if first is None or second is None else first + second
