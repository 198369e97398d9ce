"""Intervals and p-values of lifts, given how much prompts differ.

Let prompt p choose both experts of a pair in `n_ij` of its `t` decisions, and the experts in `n_i` and
`n_j`; capital letters are the sums over all prompts. To first order the logarithm of the lift
`N_ij T / (N_i N_j)` changes by `u` with each prompt (Woodruff 1971, JASA 66:411, for ratios of sums
over sampled groups):

    u = n_ij / N_ij - n_i / N_i - n_j / N_j + t / T

so that its variance is `P / (P - 1)` times the sum of `u²` over the P prompts. A few prompts may
agree by chance, and a pair that occurs in a few tokens is uncertain even if prompts agree, so

- the variance is at least that of independent tokens, `1/N_ij - 1/N_i - 1/N_j + 1/T`;
- it is that of one more prompt, in which the pair occurs as often as in the others;
- the distribution is Student's t with one degree of freedom less than the pair's effective number
  of prompts, `N_ij² / sum of n_ij²` (Kish 1965, Survey Sampling, 11.7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.coactivation.pair_counts import LayerPairs
from moetool.analysis.statistics.students_t import find_p_values, find_quantiles

Floats = NDArray[np.float64]

# The far tail of Student's t rests on the prompts being normal, which no number of prompts at hand
# can show: a smaller p-value is stated as this one.
SMALLEST_P_VALUE = 1e-6


@dataclass(frozen=True)
class LiftSpread:
    """The uncertainty of each pair's lift; NaN where a single prompt has the pair.

    Attributes:
        deviation: Standard deviation of the lift's logarithm. # (num_pairs,)
        degrees_of_freedom: # (num_pairs,)
    """

    deviation: Floats
    degrees_of_freedom: Floats

    def find_limits(self, lift: Floats) -> tuple[Floats, Floats]:
        """Return the lower and upper limits of lifts; an infinite one is NaN."""
        with np.errstate(over="ignore", invalid="ignore"):
            reach = find_quantiles(self.degrees_of_freedom) * self.deviation
            low, high = lift * np.exp(-reach), lift * np.exp(reach)
        return low, np.where(np.isfinite(high), high, np.nan)

    def find_p_values(self, lift: Floats, expected: Floats) -> Floats:
        """Return two-sided p-values of lifts if the true ones were as expected; NaN if unknown."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (np.log(lift) - np.log(expected)) / self.deviation
            return find_p_values(t, self.degrees_of_freedom)


def find_spread(counts: LayerPairs) -> LiftSpread:
    """Return the uncertainty of the lift of each pair i < j, in the order of `np.triu_indices`."""
    moments = counts.moments
    if moments is None:
        raise ValueError("The sums over prompts were left out.")
    i, j = np.triu_indices(counts.num_experts, 1)
    n_ij = counts.pairs[i, j].astype(np.float64)
    n_i, n_j = counts.loads[i].astype(np.float64), counts.loads[j].astype(np.float64)
    t = float(counts.num_decisions)
    square = moments.expert_products.diagonal()
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = (
            moments.pair_squared[i, j] / n_ij**2
            + square[i] / n_i**2
            + square[j] / n_j**2
            + moments.decisions_squared / t**2
            - 2 * moments.pair_by_first[i, j] / (n_ij * n_i)
            - 2 * moments.pair_by_second[i, j] / (n_ij * n_j)
            + 2 * moments.pair_by_decisions[i, j] / (n_ij * t)
            + 2 * moments.expert_products[i, j] / (n_i * n_j)
            - 2 * moments.expert_by_decisions[i] / (n_i * t)
            - 2 * moments.expert_by_decisions[j] / (n_j * t)
        )
        by_prompts = squares * moments.num_prompts / max(1, moments.num_prompts - 1)
        by_tokens = 1 / n_ij - 1 / n_i - 1 / n_j + 1 / t
        effective = n_ij**2 / moments.pair_squared[i, j]
        variance = np.maximum(np.maximum(by_prompts, by_tokens), 0) + 1 / effective**2
    is_known = (n_ij > 0) & (effective > 1 + 1e-9)
    return LiftSpread(
        deviation=np.sqrt(np.where(is_known, variance, np.nan)),
        degrees_of_freedom=np.where(is_known, effective - 1, np.nan),
    )
