"""The F distribution, for ratios of two variances."""

from __future__ import annotations

import math

# Terms of the continued fraction, which converges within a few hundred for a million degrees of
# freedom; and the relative change at which it has.
_MOST_TERMS = 10_000
_PRECISION = 1e-14
_TINY = 1e-300


def find_f_tail(ratio: float, numerator_df: float, denominator_df: float) -> float:
    """Return the chance that a ratio of variances is at least as large as this one.

    Args:
        ratio: At least 0.
        numerator_df: Degrees of freedom of its numerator; positive, not necessarily whole.
        denominator_df: Degrees of freedom of its denominator; positive, not necessarily whole.
    """
    a, b = denominator_df / 2, numerator_df / 2
    scaled = numerator_df * ratio
    if scaled <= 0:
        return 1.0
    if math.isinf(scaled):
        return 0.0
    x, y = denominator_df / (denominator_df + scaled), scaled / (denominator_df + scaled)
    # The fraction converges fast on one side of the mean; the other is what is left.
    if x < (a + 1) / (a + b + 2):
        return _find_beta(a, b, x, y)
    return 1 - _find_beta(b, a, y, x)


def _find_beta(a: float, b: float, x: float, y: float) -> float:
    """Return the regularized incomplete beta function at x, with `y = 1 - x`.

    By its continued fraction (DLMF 8.17.22), evaluated forwards (Lentz 1976, Appl. Opt. 15:668).
    """
    log_front = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(max(x, _TINY))
        + b * math.log(max(y, _TINY))
    )
    numerator, denominator, value = 1.0, 0.0, 1.0
    for term in range(_MOST_TERMS):
        coefficient = _find_coefficient(term, a, b, x)
        denominator = 1 / (1 + coefficient * denominator or _TINY)
        numerator = 1 + coefficient / numerator or _TINY
        change = numerator * denominator
        value *= change
        if term and abs(change - 1) < _PRECISION:
            break
    return math.exp(log_front) / (a * value)


def _find_coefficient(term: int, a: float, b: float, x: float) -> float:
    """Return the coefficient of a term of `1 / (1 + d1 / (1 + d2 / (1 + …)))`."""
    m, is_odd = divmod(term + 1, 2)
    if is_odd:
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
