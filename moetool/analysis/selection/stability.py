"""Agreement of choices that are made from different prompts, next to a random router's."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.scores import choose_experts, round_scores

NUM_ROUTERS = 32
# With more, loads are as good as normal.
_MOST_SCORES_DRAWN = 2**16


def measure_overlap(first: Collection[int], second: Collection[int]) -> float:
    """Return the share of two choices that is common to both: `2 |A ∩ B| / (|A| + |B|)`."""
    total = len(first) + len(second)
    return 2 * len(set(first) & set(second)) / total if total else 1.0


@cache
def simulate_router(num_experts: int, top_k: int, num_tokens: int) -> NDArray[np.int64]:
    """Return the loads of a few uniform random routers, which choose top-k different experts.

    Returns:
        # (num_routers, num_experts)
    """
    rng = np.random.default_rng((num_experts, top_k, num_tokens))
    if num_tokens * num_experts <= _MOST_SCORES_DRAWN:
        loads = np.empty((NUM_ROUTERS, num_experts), dtype=np.int64)
        for router in range(NUM_ROUTERS):
            ranks = rng.random((num_tokens, num_experts)).argsort(axis=1)[:, :top_k]
            loads[router] = np.bincount(ranks.ravel(), minlength=num_experts)
        return loads
    # Loads of random k-subsets: each has variance T q (1 - q), q = k / E, and all add up to T k.
    share = top_k / num_experts
    noise = rng.standard_normal((NUM_ROUTERS, num_experts))
    noise -= noise.mean(axis=1, keepdims=True)
    spread = np.sqrt(num_tokens * share * (1 - share) * num_experts / max(1, num_experts - 1))
    drawn: NDArray[np.int64] = np.maximum(0, np.rint(num_tokens * share + spread * noise)).astype(
        np.int64
    )
    return drawn


@cache
def expect_chosen(num_experts: int, top_k: int, num_tokens: int, *, top_p: float) -> float:
    """Return how many experts the token score of a uniform random router chooses, on average."""
    loads = simulate_router(num_experts, top_k, num_tokens)
    numbers = [
        len(choose_experts(round_scores(load / max(1, num_tokens * top_k)), top_p=top_p))
        for load in loads
    ]
    return float(np.mean(numbers))


def expect_random_overlap(num_experts: int, top_k: int, num_tokens: int, *, top_p: float) -> float:
    """Return the expected overlap of a random router's choices from two halves of the tokens.

    The experts of a random router are exchangeable, and halves are independent, so that only the
    sizes of the choices matter. Those come from a simulation of half the tokens.

    Args:
        num_experts: Experts of the layer.
        top_k: Experts per decision.
        num_tokens: Tokens of both halves.
        top_p: As for the real choice.
    """
    # With equal sizes n, 2 n (n / E) / (2 n).
    return expect_chosen(num_experts, top_k, max(1, num_tokens // 2), top_p=top_p) / num_experts


def expect_dropped_share(
    num_experts: int, top_k: int, num_tokens: int, *, num_dropped: int
) -> float:
    """Return the share of assignments of a uniform random router's least used experts."""
    loads = np.sort(simulate_router(num_experts, top_k, num_tokens), axis=1)
    return float((loads[:, :num_dropped].sum(axis=1) / loads.sum(axis=1)).mean())
