"""Interval of an expert's lift, given how much the prompts of one domain differ.

Let prompt i choose an expert `a_i` times in `n_i` decisions. The lift of domain d is the ratio of two
shares, `(a_d / n_d) / (a / n)`, d's over that of all prompts. To first order its logarithm changes
by `u_i` with each prompt (Woodruff 1971, JASA 66:411, for ratios of sums over sampled groups):

    u_i = a_i (1 / a_d - 1 / a) - n_i (1 / n_d - 1 / n)    in the domain
    u_i = -a_i / a + n_i / n                               in any other

so that, with the m_h prompts of each domain h drawn independently, its variance is the sum over
domains of `m_h / (m_h - 1) * sum (u_i - mean u)^2`. The limits are those of a log ratio (Katz et al.
1978, Biometrics 34:469): `lift * exp(± t * sqrt(variance))`. A few prompts may agree by chance, so

- t is Student's, with the number of prompts of the domain that chose the expert, minus one, as its
  degrees of freedom (Korn and Graubard 1999, Analysis of Health Surveys, 5.2, for subpopulations);
- the variance is at least what it would be if all tokens were independent;
- it is that of one more prompt, which chose the expert as often as those that did.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.students_t import find_quantile
from moetool.trace.reading.counts import PromptSums


def find_interval(
    assignments: NDArray[np.int64], decisions: NDArray[np.int64], sums: PromptSums
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return each domain's lift of each expert and its limits; NaN where there is none.

    An expert that the domain never chose has no upper limit. One that a single prompt of the domain
    chose has neither limit.

    Args:
        assignments: # (num_domains, num_experts)
        decisions: # (num_domains,)
        sums: Over the prompts of each domain.

    Returns:
        Lift, lower and upper limit. # (num_domains, num_experts) each
    """
    a, n = assignments.astype(np.float64), decisions.astype(np.float64)[:, None]
    all_a, all_n = a.sum(axis=0), n.sum()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lift = (a / n) / (all_a / all_n)
        by_prompts = _combine(
            _between_prompts(a, n, sums, 1 / all_a, 1 / all_n),
            _between_prompts(a, n, sums, 1 / a - 1 / all_a, 1 / n - 1 / all_n),
        )
        # The half keeps a choice of every one of a few tokens from looking certain.
        per_token = a * (n - a + 0.5) / (n + 1)
        by_tokens = _combine(per_token / all_a**2, per_token * (1 / a - 1 / all_a) ** 2)
        unseen = (sums.squared_assignments.sum(axis=0) / all_a**2) ** 2
        reach = _find_quantiles(sums.num_choosing) * np.sqrt(
            np.maximum(by_prompts, by_tokens) + unseen
        )
        low, high = lift * np.exp(-reach), lift * np.exp(reach)
    low = np.where(lift == 0, 0.0, low)
    return lift, low, np.where(np.isfinite(high), high, np.nan)


def _find_quantiles(num_choosing: NDArray[np.float64]) -> NDArray[np.float64]:
    numbers, index = np.unique(num_choosing, return_inverse=True)
    quantiles = np.array([find_quantile(int(number) - 1) for number in numbers])
    return quantiles[index].reshape(num_choosing.shape)


def _between_prompts(
    a: NDArray[np.float64],
    n: NDArray[np.float64],
    sums: PromptSums,
    of_a: NDArray[np.float64],
    of_n: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the variance of each domain's sum of `of_a * a_i - of_n * n_i` over its prompts."""
    m = sums.num_prompts[:, None]
    squares = (
        of_a**2 * sums.squared_assignments
        - 2 * of_a * of_n * sums.products
        + of_n**2 * sums.squared_decisions[:, None]
    )
    spread = squares - (of_a * a - of_n * n) ** 2 / np.maximum(m, 1)
    # The spread of a domain with one prompt is unknown: the prompt counts in full.
    variance: NDArray[np.float64] = np.where(
        m > 1, m / np.maximum(m - 1, 1) * np.maximum(spread, 0), squares
    )
    return variance


def _combine(elsewhere: NDArray[np.float64], within: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each domain's own variance plus the contributions of all others."""
    combined: NDArray[np.float64] = within + elsewhere.sum(axis=0) - elsewhere
    return combined
