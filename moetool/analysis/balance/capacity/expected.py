"""The assignments that a uniform random router is expected to drop, batch by batch.

A decision of s experts chooses a given expert with the chance s / E, independent of the others: the
expert's load of a batch is a sum of binomial numbers. When tokens come in the order of the batch, all
that the first t of them drop is what the loads of these t tokens exceed the capacity by. The expected
excess after each tenth of a batch is therefore all that is needed, and exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.drops import FACTORS, find_capacity
from moetool.analysis.balance.capacity.kinds import NUM_DECILES

# Standard deviations around the mean beyond which no probability is left in a float.
_REACH = 12
# Loads that exceed a capacity by less, on average, are as good as impossible: what is left is the
# rounding of Fourier transforms.
_ROUNDING = 1e-12
# Values of characteristic functions that are held at a time.
_MOST_CELLS = 1 << 20


def expect_dropped(
    decisions: NDArray[np.int64],
    *,
    top_k: int,
    num_experts: int,
    factors: Sequence[float] = FACTORS,
) -> NDArray[np.float64]:
    """Return the assignments that are dropped by place, if tokens come in the order of the batch.

    In any other order, as many are dropped, spread over the places.

    Args:
        decisions: Of each batch, by decile of the place and by size.
            # (num_batches, 10, num_sizes)
        top_k: Experts of a full decision, which the capacity follows from.
        num_experts: Experts of the layer.
        factors: Capacity factors.

    Returns:
        # (num_batches, num_factors, 10)
    """
    num_tokens = decisions.sum(axis=(1, 2))
    capacity = np.stack(
        [
            find_capacity(factor, num_tokens, top_k=top_k, num_experts=num_experts)
            for factor in factors
        ],
        axis=1,
    )
    so_far = decisions.cumsum(axis=1)
    chance = np.arange(decisions.shape[2]) / num_experts
    deviation = np.sqrt((so_far[:, -1] * (chance * (1 - chance))).sum(axis=1))
    # Loads within this width differ modulo it: a power of two for each batch.
    widths = 1 << np.ceil(np.log2(2 * _REACH * (deviation + 1) + 2)).astype(np.int64)
    excess = np.zeros((len(decisions), len(factors), NUM_DECILES))
    for width in np.unique(widths).tolist():
        (mine,) = np.nonzero(widths == width)
        at_once = max(1, _MOST_CELLS // (width * NUM_DECILES))
        for first in range(0, len(mine), at_once):
            part = mine[first : first + at_once]
            excess[part] = _expect_excess(so_far[part], chance, capacity[part], width)
    dropped: NDArray[np.float64] = num_experts * np.diff(excess, axis=2, prepend=0)
    return np.where(dropped > _ROUNDING * num_experts, dropped, 0.0)


def _expect_excess(
    decisions: NDArray[np.int64],
    chance: NDArray[np.float64],
    capacity: NDArray[np.int64],
    width: int,
) -> NDArray[np.float64]:
    """Return how far an expert's load is expected to exceed capacities after each decile.

    Args:
        decisions: Up to the end of each decile, by size. # (num_batches, 10, num_sizes)
        chance: That a decision of each size chooses the expert. # (num_sizes,)
        capacity: # (num_batches, num_factors)
        width: Values of loads around their mean.

    Returns:
        # (num_batches, num_factors, 10)
    """
    angle = 2 * np.pi * np.arange(width // 2 + 1) / width
    mean = (decisions * chance).sum(axis=2)
    start = np.floor(mean).astype(np.int64) - width // 2  # (num_batches, 10)
    # The characteristic function of the load, counted from the start.
    spectrum = np.exp(1j * angle * start[:, :, None])
    for size, p in enumerate(chance.tolist()):
        if size and decisions[:, :, size].any():
            step = 1 - p + p * np.exp(-1j * angle)
            spectrum *= np.power(step, decisions[:, :, size, None])
    chances = np.fft.irfft(spectrum, n=width, axis=2)  # (num_batches, 10, width)
    load = start[:, :, None] + np.arange(width)
    return np.stack(
        [
            (chances * np.maximum(load - limit[:, None, None], 0)).sum(axis=2)
            for limit in capacity.T
        ],
        axis=1,
    )
