"""Sums over prompts that every score is made of, for all prompts and for random halves of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

NUM_SPLITS = 16
# All prompts, then both halves of each split.
NUM_PARTS = 1 + 2 * NUM_SPLITS
ALL = 0


@dataclass(frozen=True)
class PartSums:
    """Sums over the prompts of each part; parts are all prompts, and both halves of each split.

    Attributes:
        decisions: # (num_parts,)
        prompts: Prompts with a decision. # (num_parts,)
        assignments: # (num_parts, num_experts)
        weights: Sum of the routing weights; None if there are none. # (num_parts, num_experts)
        token_shares: Sum over prompts of the share of the prompt's assignments that the expert
            gets. # (num_parts, num_experts)
        mean_weights: Sum over prompts of the expert's weights per token of the prompt; None
            without weights. # (num_parts, num_experts)
    """

    decisions: NDArray[np.int64]
    prompts: NDArray[np.int64]
    assignments: NDArray[np.int64]
    weights: NDArray[np.float64] | None
    token_shares: NDArray[np.float64]
    mean_weights: NDArray[np.float64] | None

    def __add__(self, other: PartSums) -> PartSums:
        return PartSums(
            decisions=self.decisions + other.decisions,
            prompts=self.prompts + other.prompts,
            assignments=self.assignments + other.assignments,
            weights=_add(self.weights, other.weights),
            token_shares=self.token_shares + other.token_shares,
            mean_weights=_add(self.mean_weights, other.mean_weights),
        )


def sum_prompts(
    assignments: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    decisions: NDArray[np.int64],
    *,
    members: NDArray[np.bool_],
    top_k: int,
) -> PartSums:
    """Return the sums over prompts, of which each is complete.

    Args:
        assignments: How often each prompt chose each expert. # (num_prompts, num_experts)
        weights: Sum of the weights of these assignments. # (num_prompts, num_experts)
        decisions: # (num_prompts,)
        members: Which prompts are in which part, see `divide_prompts`. # (num_parts, num_prompts)
        top_k: Assignments per decision.
    """
    ran = decisions > 0
    share = assignments / np.maximum(1, decisions * top_k)[:, None]
    part = members.astype(np.float64)
    return PartSums(
        # Sums of whole numbers below 2**53 are exact.
        decisions=np.rint(part @ decisions).astype(np.int64),
        prompts=(members & ran).sum(axis=1),
        assignments=np.rint(part @ assignments).astype(np.int64),
        weights=None if weights is None else part @ weights,
        token_shares=part @ share,
        mean_weights=None
        if weights is None
        else part @ (weights / np.maximum(1, decisions)[:, None]),
    )


def divide_prompts(prompt_ids: Sequence[str]) -> NDArray[np.bool_]:
    """Return which prompts are in which part; a prompt's halves depend on its id alone.

    Returns:
        # (num_parts, num_prompts)
    """
    digests = b"".join(
        blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=NUM_SPLITS // 8).digest()
        for prompt in prompt_ids
    )
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8)).reshape(-1, NUM_SPLITS)
    first = bits.T.astype(bool)  # (num_splits, num_prompts)
    halves = np.stack([first, ~first], axis=1).reshape(2 * NUM_SPLITS, -1)
    return np.concatenate([np.ones((1, len(prompt_ids)), dtype=bool), halves])


def _add(
    first: NDArray[np.float64] | None, second: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    return None if first is None or second is None else first + second
