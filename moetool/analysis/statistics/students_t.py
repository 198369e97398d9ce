"""Student's t, for intervals over a few prompts."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

CONFIDENCE = 0.95


@cache
def find_quantile(degrees_of_freedom: int) -> float:
    """Return the two-sided quantile of Student's t at `CONFIDENCE`.

    It follows from the expansion around the normal quantile (Abramowitz and Stegun 26.7.5), and is
    exact for one and two degrees of freedom; NaN for none.
    """
    p, df = (1 + CONFIDENCE) / 2, degrees_of_freedom
    if df < 1:
        return math.nan
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / df ** (power + 1) for power, term in enumerate(terms))
