"""Co-activation under a router that chooses a uniformly random set of experts for each token.

A token may choose fewer than top-k experts; the random router then chooses as few. What is expected
follows from `Sizes`: how many decisions chose how many experts. With the sum over decisions of size
s, an expert is chosen in `sum s / E` of them and a pair in `sum s (s - 1) / (E (E - 1))`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.decision_sizes import Sizes
from moetool.analysis.statistics.random_choices import draw_choices

# With fewer expected decisions per pair, the strongest pair is simulated.
_FEW = 25
_MOST_SIMULATIONS, _LEAST_SIMULATIONS = 31, 3
# Decisions times experts of all simulations.
_CELLS_SIMULATED = 2**24
# Decisions that are simulated where larger numbers differ by their standard deviation only.
_ENOUGH_DECISIONS = 2_000


@dataclass(frozen=True)
class PairBaseline:
    """Figures of pairs under a uniform random router, for decisions of the same sizes.

    Attributes:
        count: Decisions that choose both experts of a pair, on average.
        probability: Their share, `k (k - 1) / (E (E - 1))` if all decisions choose k experts.
        lift: `(k - 1) E / (k (E - 1))` for these, below 1, because experts of one decision exclude
            each other.
        conditional: Probability of one expert of a pair if the other is chosen, which the
            OLMoE paper (section 5.2) calls co-activation: `(k - 1) / (E - 1)`.
        conditional_in_olmoe_code: The same divided by half of top-k, as in the code of OLMoE.
        strongest_lift: Median of the largest lift of all pairs; None for a group of tokens.
    """

    count: float
    probability: float
    lift: float
    conditional: float
    conditional_in_olmoe_code: float
    strongest_lift: float | None


def find_pair_baseline(
    *,
    num_experts: int,
    top_k: int,
    num_decisions: int,
    sizes: Sizes,
    has_strongest: bool = True,
) -> PairBaseline | None:
    """Return the figures of a uniform random router; None where decisions have no pairs.

    Args:
        num_experts: Experts of the layer, identity experts included.
        top_k: Experts of each decision, at most.
        num_decisions: Decisions, including those that ran no expert.
        sizes: Of the others.
        has_strongest: Simulate the largest lift as well.
    """
    means = _Means.of(num_experts, num_decisions, sizes)
    if not means.pair:
        return None
    conditional = means.pair / means.load
    strongest = _find_strongest(num_experts, num_decisions, sizes) if has_strongest else None
    return PairBaseline(
        count=means.pair,
        probability=means.pair / means.num_decisions,
        lift=means.lift,
        conditional=conditional,
        conditional_in_olmoe_code=2 * conditional / top_k,
        strongest_lift=strongest,
    )


@dataclass(frozen=True)
class _Means:
    """Expected counts.

    Attributes:
        load: Decisions that choose an expert.
        pair: Decisions that choose a pair; 0 where decisions have none.
    """

    num_decisions: int
    load: float
    pair: float

    @classmethod
    def of(cls, e: int, num_decisions: int, sizes: Sizes) -> _Means:
        """Return the expected counts of decisions of these sizes among e experts."""
        pairs = sum(size * (size - 1) * number for size, number in sizes)
        return cls(
            num_decisions=num_decisions,
            load=sum(size * number for size, number in sizes) / e,
            pair=pairs / (e * (e - 1)) if pairs else 0.0,
        )

    @property
    def lift(self) -> float:
        """The lift of a pair."""
        return self.pair * self.num_decisions / self.load**2


@cache
def _find_strongest(e: int, num_decisions: int, sizes: Sizes) -> float:
    """Return the median of the largest of `e (e - 1) / 2` lifts."""
    means = _Means.of(e, num_decisions, sizes)
    most = max(size for size, _ in sizes)
    if sizes == ((e, num_decisions),):
        return means.lift
    if means.pair >= _FEW and 2 * most <= e:
        # The logarithm of a lift is close to normal. The pairs of few experts among many are close
        # to independent.
        deviation = math.sqrt(_find_variance(e, sizes, means))
        z = NormalDist().inv_cdf(0.5 ** (2 / (e * (e - 1))))
        # A count is a little skewed (Cornish and Fisher 1938, first term).
        return means.lift * (1 + deviation * z + (z * z - 1) / 6 / means.pair)
    num_drawn = num_decisions if 2 * most <= e else min(num_decisions, _ENOUGH_DECISIONS)
    all_sizes = np.zeros(num_decisions, dtype=np.int64)
    ran = np.repeat(*np.array(sizes, dtype=np.int64).T)
    all_sizes[: len(ran)] = ran
    # In the same proportions.
    drawn = all_sizes[np.arange(num_drawn) * num_decisions // num_drawn]
    rng = np.random.default_rng(0)
    num_draws = max(_LEAST_SIMULATIONS, min(_MOST_SIMULATIONS, _CELLS_SIMULATED // (num_drawn * e)))
    median = float(np.median([_draw_strongest(rng, e, drawn) for _ in range(num_draws)]))
    return means.lift * math.pow(median / means.lift, math.sqrt(num_drawn / num_decisions))


def _find_variance(e: int, sizes: Sizes, means: _Means) -> float:
    """Return the variance of a lift's logarithm to first order.

    Each decision changes it by `[both] / pair - ([one] + [other]) / load`, for expected counts.
    """
    variance = 0.0
    for size, number in sizes:
        one, both = size / e, size * (size - 1) / (e * (e - 1))
        mean = both / means.pair - 2 * one / means.load
        square = both / means.pair**2 + 2 * (one + both) / means.load**2
        square -= 4 * both / (means.pair * means.load)
        variance += number * (square - mean**2)
    return variance


def _draw_strongest(rng: np.random.Generator, e: int, sizes: NDArray[np.int64]) -> float:
    chosen = draw_choices(rng, e, sizes)
    # The last column takes the padding, which has the index -1.
    is_chosen = np.zeros((len(sizes), e + 1), dtype=np.float32)
    np.put_along_axis(is_chosen, chosen, 1, axis=1)
    is_chosen = is_chosen[:, :e]
    pairs = (is_chosen.T @ is_chosen).astype(np.float64)
    loads = pairs.diagonal().copy()
    np.fill_diagonal(pairs, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = pairs * len(sizes) / np.outer(loads, loads)
    return float(np.nanmax(lift))
