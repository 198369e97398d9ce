"""Co-activation under a router that chooses a uniformly random set of experts for each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

# With fewer expected decisions per pair, the strongest pair is simulated.
_FEW = 25
_MOST_SIMULATIONS, _LEAST_SIMULATIONS = 31, 3
# Decisions times experts of all simulations.
_CELLS_SIMULATED = 2**24
# Decisions that are simulated where larger numbers differ by their standard deviation only.
_ENOUGH_DECISIONS = 2_000


@dataclass(frozen=True)
class PairBaseline:
    """Figures of pairs under a uniform random router, for the same number of decisions.

    Attributes:
        count: Decisions that choose both experts of a pair, on average.
        probability: `k (k - 1) / (E (E - 1))`.
        lift: `(k - 1) E / (k (E - 1))`, below 1, because experts of one decision exclude each
            other.
        conditional: Probability of one expert of a pair if the other is chosen, which the
            OLMoE paper (section 5.2) calls co-activation: `(k - 1) / (E - 1)`.
        conditional_in_olmoe_code: The same divided by `k / 2`, as in the code of OLMoE.
        strongest_lift: Median of the largest lift of all pairs; None for a layer without pairs.
    """

    count: float
    probability: float
    lift: float
    conditional: float
    conditional_in_olmoe_code: float
    strongest_lift: float | None


def find_pair_baseline(*, num_experts: int, top_k: int, num_decisions: int) -> PairBaseline | None:
    """Return the figures of a uniform random router; None where decisions have no pairs.

    Args:
        num_experts: Experts of the layer, identity experts included.
        top_k: Experts of each decision.
        num_decisions: Decisions of the layer.
    """
    e, k = num_experts, top_k
    if k < 2 or e < 2 or not num_decisions:
        return None
    probability = k * (k - 1) / (e * (e - 1))
    conditional = (k - 1) / (e - 1)
    return PairBaseline(
        count=num_decisions * probability,
        probability=probability,
        lift=conditional * e / k,
        conditional=conditional,
        conditional_in_olmoe_code=2 * conditional / k,
        strongest_lift=_find_strongest(e, k, num_decisions),
    )


@cache
def _find_strongest(e: int, k: int, num_decisions: int) -> float:
    """Return the median of the largest of `e (e - 1) / 2` lifts."""
    count = num_decisions * k * (k - 1) / (e * (e - 1))
    lift = (k - 1) * e / (k * (e - 1))
    if k == e:
        return lift
    if count >= _FEW and 2 * k <= e:
        # The logarithm of a lift is close to normal, with this variance to first order. The pairs
        # of few experts among many are close to independent.
        variance = 1 / count - 2 * e / (num_decisions * k) + 1 / num_decisions
        z = NormalDist().inv_cdf(0.5 ** (2 / (e * (e - 1))))
        # A count is a little skewed (Cornish and Fisher 1938, first term).
        return lift * (1 + math.sqrt(variance) * z + (z * z - 1) / 6 / count)
    num_drawn = num_decisions if 2 * k <= e else min(num_decisions, _ENOUGH_DECISIONS)
    rng = np.random.default_rng(0)
    num_draws = max(_LEAST_SIMULATIONS, min(_MOST_SIMULATIONS, _CELLS_SIMULATED // (num_drawn * e)))
    median = float(np.median([_draw_strongest(rng, e, k, num_drawn) for _ in range(num_draws)]))
    return lift * math.pow(median / lift, math.sqrt(num_drawn / num_decisions))


def _draw_strongest(rng: np.random.Generator, e: int, k: int, num_decisions: int) -> float:
    chosen = np.argpartition(rng.random((num_decisions, e)), k - 1, axis=1)[:, :k]
    is_chosen = np.zeros((num_decisions, e), dtype=np.float32)
    np.put_along_axis(is_chosen, chosen, 1, axis=1)
    pairs = (is_chosen.T @ is_chosen).astype(np.float64)
    loads = pairs.diagonal().copy()
    np.fill_diagonal(pairs, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = pairs * num_decisions / np.outer(loads, loads)
    return float(np.nanmax(lift))
