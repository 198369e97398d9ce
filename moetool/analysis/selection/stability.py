"""Agreement of choices that are made from different prompts, next to a random router's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.scores import choose_experts, round_scores

_NUM_ROUTERS = 32
# With more tokens, loads are as good as normal.
_MOST_TOKENS_DRAWN = 4096


def measure_overlap(first: Collection[int], second: Collection[int]) -> float:
    """Return the share of two choices that is common to both: `2 |A ∩ B| / (|A| + |B|)`."""
    total = len(first) + len(second)
    return 2 * len(set(first) & set(second)) / total if total else 1.0


def expect_overlap(first: int, second: int, *, num_experts: int) -> float:
    """Return the expected overlap of two independent random choices of the given sizes.

    Each of the first is in the second with probability `second / num_experts`.
    """
    total = first + second
    return 2 * first * second / (num_experts * total) if total else 1.0


@cache
def simulate_router(num_experts: int, top_k: int, num_tokens: int) -> NDArray[np.int64]:
    """Return the loads of a few uniform random routers, which choose top-k different experts.

    Returns:
        # (num_routers, num_experts)
    """
    rng = np.random.default_rng((num_experts, top_k, num_tokens))
    if num_tokens <= _MOST_TOKENS_DRAWN and num_tokens * num_experts <= 2**20:
        loads = np.empty((_NUM_ROUTERS, num_experts), dtype=np.int64)
        for router in range(_NUM_ROUTERS):
            ranks = rng.random((num_tokens, num_experts)).argsort(axis=1)[:, :top_k]
            loads[router] = np.bincount(ranks.ravel(), minlength=num_experts)
        return loads
    # Loads of random k-subsets: each has variance T q (1 - q), q = k / E, and all add up to T k.
    share = top_k / num_experts
    noise = rng.standard_normal((_NUM_ROUTERS, num_experts))
    noise -= noise.mean(axis=1, keepdims=True)
    spread = np.sqrt(num_tokens * share * (1 - share) * num_experts / max(1, num_experts - 1))
    return np.maximum(0, np.rint(num_tokens * share + spread * noise)).astype(np.int64)


def count_chosen_at_random(
    num_experts: int, top_k: int, num_tokens: int, *, top_p: float
) -> list[int]:
    """Return how many experts are chosen by the token score of each simulated random router."""
    loads = simulate_router(num_experts, top_k, num_tokens)
    return [
        len(choose_experts(round_scores(load / (num_tokens * top_k)), top_p=top_p))
        for load in loads
    ]


def expect_random_overlap(
    sizes: Iterable[tuple[int, int]], *, num_experts: int, top_k: int, top_p: float
) -> float:
    """Return the expected overlap of a random router's choices from two halves of the tokens.

    The experts of a random router are exchangeable, and halves are independent, so that only the
    sizes of the choices matter. Those come from a simulation.

    Args:
        sizes: Tokens of the halves, for each split; at least one.
        num_experts: Experts of the layer.
        top_k: Experts per decision.
        top_p: As for the real choice.
    """
    expected = []
    for first, second in sizes:
        chosen = (
            float(np.mean(count_chosen_at_random(num_experts, top_k, size, top_p=top_p)))
            for size in (first, second)
        )
        numbers = [round(number) for number in chosen]
        expected.append(expect_overlap(*numbers, num_experts=num_experts))
    return float(np.mean(expected))
