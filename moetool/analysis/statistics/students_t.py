"""Student's t, for intervals over a few prompts.

Where degrees of freedom are not whole numbers, t is turned into a normal deviate by the formula of
Wallace (1959, Ann. Math. Stat. 30:1121).
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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


def interpolate_quantile(degrees_of_freedom: float) -> float:
    """Return the same quantile at any degrees of freedom from 1: exact or up to 3 % too large.

    Its logarithm is interpolated between whole numbers, over their reciprocals.
    """
    # Rounding must not take equal prompts below a whole number.
    df = max(1.0, degrees_of_freedom * (1 + 1e-9))
    whole = int(df)
    weight = (1 / whole - 1 / df) * whole * (whole + 1)
    low, high = find_quantile(whole), find_quantile(whole + 1)
    return low * math.exp(weight * math.log(high / low))


def find_quantiles(degrees_of_freedom: Floats) -> Floats:
    """Return the two-sided quantiles at `CONFIDENCE`, within 1 % above 3.5 degrees of freedom.

    Args:
        degrees_of_freedom: Positive, not necessarily whole; NaN gives NaN. # (any shape)

    Returns:
        Infinite where it is too large for a float. # (the same shape)
    """
    z, df = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), degrees_of_freedom
    with np.errstate(over="ignore", invalid="ignore"):
        deviate = z * (8 * df + 3) / (8 * df + 1)
        quantiles: Floats = np.sqrt(df * np.expm1(deviate**2 / df))
    return quantiles


def find_p_values(t: Floats, degrees_of_freedom: Floats) -> Floats:
    """Return the two-sided p-values of statistics; NaN where t or its degrees of freedom are.

    Args:
        t: # (num_values,)
        degrees_of_freedom: Positive, not necessarily whole. # (num_values,)

    Returns:
        # (num_values,)
    """
    df = degrees_of_freedom
    z = (8 * df + 1) / (8 * df + 3) * np.sqrt(df * np.log1p(t * t / df))
    return np.array([math.erfc(value / math.sqrt(2)) for value in z.tolist()])
