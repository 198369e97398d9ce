"""Pairs that a router would choose if it had the same loads and no other preference.

Among all ways to choose a fixed number of experts that give each expert its load, the one of largest
entropy chooses the set S with probability proportional to the product of weights w_i of its members
(conditional Poisson sampling: Hájek 1964, Ann. Math. Stat. 35:1491; Chen, Dempster and Liu 1994,
Biometrika 81:457). With `P(z) = prod (1 + w_i z)`, the probabilities of sets of size s are
coefficients of z^s, here found by a discrete Fourier transform on the unit circle:

    sum over S with i and j, of size s:  [z^s] P(z) a_i(z) a_j(z),   a_i(z) = w_i z / (1 + w_i z)

Weights are scaled so that experts chosen independently with odds w_i would be as many on average:
the coefficients that matter are then the largest ones, and nothing cancels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST_STEPS = 200
_TOLERANCE = 1e-10


def expect_pairs(load: Floats, sizes: NDArray[np.int64]) -> Floats | None:
    """Return the probability of each pair of experts in a decision, given the experts' loads alone.

    Decisions keep their sizes, where some have fewer experts than top-k.

    Args:
        load: Share of the decisions that choose the expert. # (num_experts,)
        sizes: Decisions with 0, 1, 2, … experts. # (top_k + 1,)

    Returns:
        Symmetric, with the loads in the diagonal. None if no weights give these loads.
        # (num_experts, num_experts)
    """
    always = load >= 1.0
    is_free = (load > 0) & ~always
    num_fixed = int(always.sum())
    pairs = np.zeros((len(load), len(load)))
    pairs[np.ix_(always, always)] = 1.0
    pairs[np.ix_(always, is_free)] = load[is_free]
    pairs[np.ix_(is_free, always)] = load[is_free][:, None]
    if is_free.any():
        free = _expect_free_pairs(load[is_free], sizes[num_fixed:] / sizes.sum())
        if free is None:
            return None
        pairs[np.ix_(is_free, is_free)] = free
    np.fill_diagonal(pairs, load)
    return pairs


def _expect_free_pairs(load: Floats, share_of_size: Floats) -> Floats | None:
    """Return the same for experts that are chosen sometimes.

    Args:
        load: Each between 0 and 1. # (num_experts,)
        share_of_size: Share of the decisions with 0, 1, 2, … experts. # (top_k + 1,)
    """
    target = np.log(load) - np.log1p(-load)
    log_weight = target.copy()
    # An odd number keeps the nodes off -1, where 1 + w z may vanish.
    nodes = np.exp(2j * np.pi * np.arange(num := len(load) + 1 + len(load) % 2) / num)
    for _ in range(_MOST_STEPS):
        log_weight += _centre(log_weight, mean_size=load.sum())
        member, factor = _transform(log_weight, nodes, share_of_size)
        reached = (factor @ member).real
        if not ((reached > 0) & (reached < 1)).all():
            return None
        if np.abs(reached / load - 1).max() < _TOLERANCE:
            pairs: Floats = ((member * factor[:, None]).T @ member).real
            return np.maximum(pairs, 0.0)
        log_weight += target - (np.log(reached) - np.log1p(-reached))
    return None


def _centre(log_weight: Floats, *, mean_size: float) -> float:
    """Return what to add to the weights for independent choices to have a mean size."""
    low, high = -700.0 - log_weight.max(), 700.0 - log_weight.min()
    shift = 0.0
    for _ in range(100):
        chance = 1 / (1 + np.exp(-np.clip(log_weight + shift, -700, 700)))
        excess = chance.sum() - mean_size
        low, high = (low, shift) if excess > 0 else (shift, high)
        if abs(excess) < 1e-9 * mean_size or high - low < 1e-12:
            break
        step = excess / max((chance * (1 - chance)).sum(), 1e-300)
        shift = shift - step if low < shift - step < high else (low + high) / 2
    return shift


def _transform(
    log_weight: Floats, nodes: NDArray[np.complex128], share_of_size: Floats
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return `a_i` at each node, and the factors whose sum over the nodes picks the coefficients.

    Returns:
        # (num_nodes, num_experts), # (num_nodes,)
    """
    terms = np.exp(log_weight) * nodes[:, None]
    log_product = np.log1p(terms).sum(axis=1)
    product = np.exp(log_product - log_product.real.max())
    factor = np.zeros(len(nodes), dtype=np.complex128)
    for size in np.flatnonzero(share_of_size):
        turned = product * nodes ** -int(size)
        factor += share_of_size[size] * turned / turned.sum()
    return terms / (1 + terms), factor
