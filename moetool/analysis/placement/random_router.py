"""Scores that a placement has for a router that chooses experts uniformly at random.

Each decision of the random router runs as many experts as one of the trace: a choice that ran none
leaves a decision with fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.scoring import PlacementScore, measure_imbalance
from moetool.analysis.statistics.decision_sizes import Sizes
from moetool.analysis.statistics.random_choices import draw_choices

# Draws behind a mean: its standard error is below 0.5 % of the value for 2 GPUs or more.
_NUM_DRAWS = 128
# Random numbers drawn for one mean; loads of more tokens are drawn from the normal distribution
# with their covariance, from which they can't be distinguished.
_MOST_NUMBERS = 2**22
_NUMBERS_AT_ONCE = 2**20
_SEED = 20_240


@dataclass(frozen=True)
class RouterShape:
    """The choice that a layer's router has.

    Attributes:
        num_experts: Experts that GPUs hold.
        num_others: Experts that return their input unchanged, which no GPU holds.
        sizes: Numbers of experts that decisions ran, from both kinds, and how many decisions did.
        num_decisions: Including those that ran none.
    """

    num_experts: int
    num_others: int
    sizes: Sizes
    num_decisions: int

    @property
    def num_ids(self) -> int:
        """Experts of both kinds."""
        return self.num_experts + self.num_others


def score_random_router(
    shape: RouterShape,
    gpu_share: NDArray[np.float64],
    node_share: NDArray[np.float64],
    *,
    tokens_per_batch: int | None,
    num_tokens: int,
) -> PlacementScore:
    """Return the scores of a placement for a random router, without bytes.

    Imbalance is a mean over draws, with a fixed seed. Fan-out is exact.

    Args:
        shape: The choice of the router.
        gpu_share: Share of each expert's load that every GPU serves. # (num_experts, num_gpus)
        node_share: The same for nodes. # (num_experts, num_nodes)
        tokens_per_batch: None if there was no complete batch.
        num_tokens: Tokens that the trace's scores are from.
    """
    return PlacementScore(
        batch_imbalance=tokens_per_batch
        and _mean_imbalance(shape, gpu_share, num_tokens=tokens_per_batch),
        global_imbalance=_mean_imbalance(shape, gpu_share, num_tokens=num_tokens),
        fan_out=expect_reached(shape, gpu_share),
        node_fan_out=expect_reached(shape, node_share),
    )


def expect_reached(shape: RouterShape, share: NDArray[np.float64]) -> float | None:
    """Return how many parts a decision's experts are on, expected over random choices.

    A part is missed by a decision of n experts with the mean, over all choices of n, of the product
    of `1 - share`. That is an elementary symmetric polynomial over the number of choices; it is
    built up expert by expert, in proportion to that number.

    Args:
        shape: The choice of the router.
        share: Share of each expert's load that every part serves. # (num_experts, num_parts)

    Returns:
        None without decisions.
    """
    if not shape.num_decisions:
        return None
    num_parts = share.shape[1]
    most = max((size for size, _ in shape.sizes), default=0)
    mean = np.zeros((most + 1, num_parts))  # By the number of experts chosen.
    mean[0] = 1
    chosen = np.arange(1, most + 1)[:, None]
    missed = np.vstack([1 - share, np.ones((shape.num_others, num_parts))])
    for number, factor in enumerate(missed, start=1):
        mean[1:] = mean[1:] * np.maximum(number - chosen, 0) / number + (
            factor * mean[:-1] * chosen / number
        )
    reached = sum(number * (1 - mean[size]).sum() for size, number in shape.sizes)
    return float(reached / shape.num_decisions)


def _mean_imbalance(
    shape: RouterShape, share: NDArray[np.float64], *, num_tokens: int
) -> float | None:
    if not num_tokens or not shape.sizes:
        return None
    loads = simulate_loads(shape, num_tokens=num_tokens)
    return float(measure_imbalance(loads @ share).mean())


@lru_cache(maxsize=64)
def simulate_loads(shape: RouterShape, *, num_tokens: int) -> NDArray[np.float64]:
    """Return loads of experts after some tokens, drawn several times with a fixed seed.

    Returns:
        # (num_draws, num_experts)
    """
    rng = np.random.default_rng(_SEED)
    num_ids = shape.num_ids
    size, number = np.array(shape.sizes).T
    chance = number / shape.num_decisions
    expected = float((chance * size).sum()) * num_tokens / num_ids
    if num_tokens * num_ids * _NUM_DRAWS > _MOST_NUMBERS and expected > 20:
        noise = rng.standard_normal((_NUM_DRAWS, num_ids))
        noise -= noise.mean(axis=1, keepdims=True)  # Loads add up to a constant.
        share = size / num_ids
        variance = num_tokens * float((chance * share * (1 - share)).sum())
        variance *= num_ids / max(1, num_ids - 1)
        drawn: NDArray[np.float64] = expected + np.sqrt(variance) * noise
        return drawn[:, : shape.num_experts]
    experts = _draw_experts(num_ids, int(size.max()), num_tokens)
    sizes = rng.choice(
        np.append(size, 0), p=np.append(chance, max(0.0, 1 - chance.sum())), size=experts.shape[:2]
    )
    # The first few of distinct experts in random order are distinct experts in random order.
    rank = np.arange(experts.shape[2])
    loads = [
        np.bincount(chosen[rank < number[:, None]], minlength=num_ids)
        for chosen, number in zip(experts, sizes, strict=True)
    ]
    return np.array(loads, dtype=np.float64)[:, : shape.num_experts]


@lru_cache(maxsize=4)
def _draw_experts(num_ids: int, size: int, num_tokens: int) -> NDArray[np.int32]:
    """Return distinct experts of each token, in random order.

    Returns:
        # (num_draws, num_tokens, size)
    """
    rng = np.random.default_rng((_SEED, num_ids, size, num_tokens))
    step = max(1, _NUMBERS_AT_ONCE // num_ids)
    total = _NUM_DRAWS * num_tokens
    parts = [
        draw_choices(rng, num_ids, np.full(min(step, total - start), size)).astype(np.int32)
        for start in range(0, total, step)
    ]
    return np.concatenate(parts).reshape(_NUM_DRAWS, num_tokens, size)
