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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SIMPLE_STEPS, _NEWTON_STEPS = 24, 60
# Of a logarithm of a weight.
_LONGEST_STEP = 1.0
_RIDGE = 1e-9
_TOLERANCE = 1e-10
# Of a load, at which its pairs are still better known than from any trace.
_LARGEST_ERROR = 1e-4


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
    log_weight = target + _centre(target, mean_size=load.sum())
    # Simple steps are cheap and few where experts are many. Where a few exclude each other they
    # overshoot or creep, and Newton's converge.
    for number in range(_SIMPLE_STEPS + _NEWTON_STEPS):
        sizes = _Sizes.transform(log_weight, share_of_size)
        reached = sizes.loads
        if not ((reached > 0) & (reached < 1)).all():
            return None
        error = float(np.abs(reached / load - 1).max())
        if error < _TOLERANCE:
            break
        if number < _SIMPLE_STEPS:
            step = target - (np.log(reached) - np.log1p(-reached))
        else:
            step = _find_newton_step(sizes, load)
        log_weight += step
        log_weight += _centre(log_weight, mean_size=load.sum())
    return np.maximum(sizes.pairs, 0.0) if error < _LARGEST_ERROR else None


@dataclass(frozen=True)
class _Sizes:
    """The router's probabilities, for decisions of each size that occurs.

    Attributes:
        member: `a_i` at each node. # (num_nodes, num_experts)
        factor: What picks the coefficient of each size: its sum over the nodes is 1.
            # (num_sizes, num_nodes)
        share: Of each size. # (num_sizes,)
    """

    member: NDArray[np.complex128]
    factor: NDArray[np.complex128]
    share: Floats

    @classmethod
    def transform(cls, log_weight: Floats, share_of_size: Floats) -> _Sizes:
        """Return the probabilities under weights."""
        # An odd number keeps the nodes off -1, where 1 + w z may vanish.
        num_nodes = len(log_weight) + 1 + len(log_weight) % 2
        nodes = np.exp(2j * np.pi * np.arange(num_nodes) / num_nodes)
        terms = np.exp(log_weight) * nodes[:, None]
        log_product = np.log1p(terms).sum(axis=1)
        (sizes,) = np.nonzero(share_of_size)
        turned = np.exp(log_product - log_product.real.max()) * nodes ** -sizes[:, None]
        total = turned.sum(axis=1)
        return cls(
            member=terms / (1 + terms),
            factor=turned / total[:, None],
            share=share_of_size[sizes],
        )

    @property
    def loads(self) -> Floats:
        """The probability of each expert. # (num_experts,)."""
        loads: Floats = (self.share @ self.factor @ self.member).real
        return loads

    @property
    def pairs(self) -> Floats:
        """The probability of each pair of different experts. # (num_experts, num_experts)."""
        weighted = self.member * (self.share @ self.factor)[:, None]
        pairs: Floats = (weighted.T @ self.member).real
        return pairs


def _find_newton_step(sizes: _Sizes, load: Floats) -> Floats:
    """Return Newton's step to weights that give the loads, of a length that is safe.

    The loads are the gradient of the expected logarithm of the sum over sets, their covariances its
    second derivative.
    """
    by_size = (sizes.factor @ sizes.member).real  # (num_sizes, num_experts)
    covariance = sizes.pairs
    np.fill_diagonal(covariance, sizes.loads)
    covariance -= (by_size * sizes.share[:, None]).T @ by_size
    # All weights may be multiplied by one number.
    covariance += 1 / len(load) ** 2
    covariance[np.diag_indices(len(load))] += _RIDGE * load * (1 - load)
    step = np.linalg.solve(covariance, load - sizes.loads).astype(np.float64)
    return step / max(1.0, float(np.abs(step).max()) / _LONGEST_STEP)


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
