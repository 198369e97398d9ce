"""Scores that a placement has for a router that chooses top-k experts uniformly at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.scoring import PlacementScore, measure_imbalance

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
        top_k: Chosen per decision.
    """

    num_experts: int
    num_others: int
    top_k: int


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


def expect_reached(shape: RouterShape, share: NDArray[np.float64]) -> float:
    """Return how many parts a decision's experts are on, expected over random choices.

    A part is missed by a decision with the mean, over all choices of top-k experts, of the product
    of `1 - share`. That is an elementary symmetric polynomial over the number of choices; it is
    built up expert by expert, in proportion to that number.

    Args:
        shape: The choice of the router.
        share: Share of each expert's load that every part serves. # (num_experts, num_parts)
    """
    num_parts = share.shape[1]
    mean = np.zeros((shape.top_k + 1, num_parts))  # By the number of experts chosen.
    mean[0] = 1
    chosen = np.arange(1, shape.top_k + 1)[:, None]
    missed = np.vstack([1 - share, np.ones((shape.num_others, num_parts))])
    for number, factor in enumerate(missed, start=1):
        mean[1:] = mean[1:] * np.maximum(number - chosen, 0) / number + (
            factor * mean[:-1] * chosen / number
        )
    return float((1 - mean[-1]).sum())


def _mean_imbalance(
    shape: RouterShape, share: NDArray[np.float64], *, num_tokens: int
) -> float | None:
    if not num_tokens:
        return None
    loads = simulate_loads(shape, num_tokens=num_tokens)
    return float(measure_imbalance(loads @ share).mean())


@cache
def simulate_loads(shape: RouterShape, *, num_tokens: int) -> NDArray[np.float64]:
    """Return loads of experts after some tokens, drawn several times with a fixed seed.

    Returns:
        # (num_draws, num_experts)
    """
    rng = np.random.default_rng(_SEED)
    num_ids = shape.num_experts + shape.num_others
    top_k = min(shape.top_k, num_ids)
    if num_tokens * num_ids * _NUM_DRAWS > _MOST_NUMBERS and num_tokens * top_k > 20 * num_ids:
        chance = top_k / num_ids
        noise = rng.standard_normal((_NUM_DRAWS, num_ids))
        noise -= noise.mean(axis=1, keepdims=True)  # Loads add up to a constant.
        variance = num_tokens * chance * (1 - chance) * num_ids / max(1, num_ids - 1)
        drawn: NDArray[np.float64] = num_tokens * chance + np.sqrt(variance) * noise
        return drawn[:, : shape.num_experts]
    loads = np.zeros((_NUM_DRAWS, num_ids))
    step = max(1, _NUMBERS_AT_ONCE // num_ids)
    for draw in range(_NUM_DRAWS):
        for start in range(0, num_tokens, step):
            keys = rng.random((min(step, num_tokens - start), num_ids))
            chosen = np.argpartition(keys, top_k - 1, axis=1)[:, :top_k]
            loads[draw] += np.bincount(chosen.ravel(), minlength=num_ids)
    return loads[:, : shape.num_experts]
