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
from moetool.analysis.statistics.random_loads import list_sizes, simulate_loads

# Draws behind a mean: its standard error is below 0.5 % of the value for 2 GPUs or more.
_NUM_DRAWS = 128


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
    loads = draw_loads(shape, num_tokens=num_tokens)
    return float(measure_imbalance(loads @ share).mean())


@lru_cache(maxsize=64)
def draw_loads(shape: RouterShape, *, num_tokens: int) -> NDArray[np.float64]:
    """Return loads of the experts that GPUs hold after some tokens, drawn several times.

    Returns:
        # (num_draws, num_experts)
    """
    (loads,) = simulate_loads(
        shape.num_ids,
        *list_sizes(shape.sizes, shape.num_decisions),
        num_tokens=num_tokens,
        num_draws=_NUM_DRAWS,
    )
    held: NDArray[np.float64] = loads[:, : shape.num_experts]
    return held
