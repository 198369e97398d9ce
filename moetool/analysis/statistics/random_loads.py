"""Loads of experts under a router that knows nothing, simulated several times."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.decision_sizes import Sizes
from moetool.analysis.statistics.random_choices import draw_choices

Floats = NDArray[np.float64]

# Random numbers drawn for one simulation. Loads of more tokens are drawn from the normal
# distribution with their covariance, from which they can't be distinguished.
_MOST_NUMBERS = 2**22
# Choices of an expert in a simulation below which its load is not normal.
_FEWEST_CHOICES = 20
_NUMBERS_AT_ONCE = 2**20
_SEED = 20_240


def list_sizes(sizes: Sizes, num_decisions: int) -> tuple[Floats, Floats]:
    """Return decisions of each size for `simulate_loads`, in which each choice counts once.

    Args:
        sizes: Numbers of experts that decisions ran, and how many decisions did.
        num_decisions: Including those that ran none.

    Returns:
        # (1, num_sizes, largest size) and (num_sizes,)
    """
    every = [*sizes, (0, num_decisions - sum(number for _, number in sizes))]
    size, number = np.array(every, dtype=np.int64).reshape(-1, 2).T
    values = np.arange(int(size.max())) < size[:, None]
    return values[None].astype(np.float64), number / max(1, num_decisions)


def simulate_loads(
    num_experts: int, values: Floats, share: Floats, *, num_tokens: int, num_draws: int
) -> Floats:
    """Return what experts get if each decision's choices go to random ones, all different.

    The same arguments give the same loads.

    Args:
        num_experts: Experts to choose from.
        values: What each choice of a decision adds to the load of its expert, of one or more kinds
            of load; 0 for a choice that ran no expert. # (num_kinds, num_decisions, num_choices)
        share: Share of the tokens that decide so. # (num_decisions,)
        num_tokens: Tokens of each simulation.
        num_draws: Simulations.

    Returns:
        # (num_kinds, num_draws, num_experts)
    """
    num_kinds, _, num_choices = values.shape
    chosen = num_tokens / num_experts * float(share @ (values[0] != 0).sum(axis=1))
    if num_tokens * num_experts * num_draws > _MOST_NUMBERS and chosen > _FEWEST_CHOICES:
        return _draw_normal(num_experts, values, share, num_tokens=num_tokens, num_draws=num_draws)
    loads = np.zeros((num_kinds, num_draws, num_experts))
    if not num_choices or not num_tokens:
        return loads
    experts = _draw_experts(num_experts, num_choices, num_tokens, num_draws)
    rng = np.random.default_rng(_SEED)
    bounds = np.cumsum(share)
    for draw, start in enumerate(rng.random(num_draws)):
        # Every decision as often as its share says, and at most once more or less. The order of
        # decisions doesn't matter, because their experts are random.
        at = (np.arange(num_tokens) + start) / num_tokens * bounds[-1]
        decision = np.minimum(np.searchsorted(bounds, at, side="right"), len(bounds) - 1)
        for kind, mine in enumerate(values):
            loads[kind, draw] = np.bincount(
                experts[draw].ravel(), weights=mine[decision].ravel(), minlength=num_experts
            )
    return loads


def _draw_normal(
    num_experts: int, values: Floats, share: Floats, *, num_tokens: int, num_draws: int
) -> Floats:
    """Return loads from the normal distribution with the mean and covariance of `simulate_loads`.

    A token with values v, on different experts, gives an expert the mean `sum v / E`, with the
    variance `sum v**2 / E - (sum v)**2 / E**2`. All loads of a kind add up to a constant.
    """
    num_kinds = len(values)
    total = values.sum(axis=2)  # (num_kinds, num_decisions)
    products = np.einsum("n,ink,jnk->ij", share, values, values) / num_experts
    products -= np.einsum("n,in,jn->ij", share, total, total) / num_experts**2
    products *= num_tokens * num_experts / max(1, num_experts - 1)
    size, direction = np.linalg.eigh(products)
    noise = np.random.default_rng(_SEED).standard_normal((num_kinds, num_draws, num_experts))
    noise -= noise.mean(axis=2, keepdims=True)
    spread = direction * np.sqrt(np.maximum(0, size))
    mean = num_tokens * (total @ share) / num_experts
    loads: Floats = mean[:, None, None] + np.einsum("ij,jde->ide", spread, noise)
    return loads


@lru_cache(maxsize=4)
def _draw_experts(
    num_experts: int, num_choices: int, num_tokens: int, num_draws: int
) -> NDArray[np.int32]:
    """Return different experts for each token's choices, in random order.

    Returns:
        # (num_draws, num_tokens, num_choices)
    """
    rng = np.random.default_rng((_SEED, num_experts, num_choices, num_tokens))
    step = max(1, _NUMBERS_AT_ONCE // num_experts)
    total = num_draws * num_tokens
    parts = [
        draw_choices(rng, num_experts, np.full(min(step, total - start), num_choices))
        for start in range(0, total, step)
    ]
    experts = np.concatenate(parts).astype(np.int32)
    # All callers share it.
    experts.setflags(write=False)
    return experts.reshape(num_draws, num_tokens, num_choices)
