"""Choices of a router that knows nothing: any set of experts as often as any other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT

Ints = NDArray[np.int64]


def draw_choices(rng: np.random.Generator, num_experts: int, sizes: Ints) -> Ints:
    """Return distinct experts of each decision, drawn uniformly and in random order.

    Args:
        rng: Source of random numbers.
        num_experts: Experts to draw from.
        sizes: Number of experts that each decision runs, at most `num_experts`. # (num_decisions,)

    Returns:
        `NO_EXPERT` after the experts of shorter decisions. # (num_decisions, largest size)

    Raises:
        ValueError: if a decision runs more experts than there are.
    """
    most = int(sizes.max(initial=0))
    if most > num_experts:
        raise ValueError(f"{most} distinct experts of {num_experts}")
    keys = rng.random((len(sizes), num_experts))
    if most < num_experts:
        nearest = np.argpartition(keys, most, axis=1)[:, :most]
        order = np.argsort(np.take_along_axis(keys, nearest, axis=1), axis=1)
        experts = np.take_along_axis(nearest, order, axis=1)
    else:
        experts = np.argsort(keys, axis=1)
    return np.where(np.arange(most) < sizes[:, None], experts, NO_EXPERT).astype(np.int64)
