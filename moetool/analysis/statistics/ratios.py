"""Ratios of sums over tokens, with intervals that take prompts as the unit.

Let prompt p contribute x_p to a sum over n_p decisions. The ratio r = sum x / sum n has, to first
order, the variance `P / (P - 1) * sum (x_p - r n_p)^2 / (sum n)^2` over P prompts that are drawn
independently: the infinitesimal jackknife of a ratio (Cochran 1977, Sampling Techniques, 6.4). It needs only sums, so that
prompts are forgotten once they are read.

A few prompts may agree by chance. Limits are therefore Student's with P - 1 degrees of freedom, and
the variance is at least that of independent decisions, `r (1 - r) / N`, the largest that values
from 0 to 1 can have, with half a decision added so that none of N does not look certain.

Where the length of each prompt is at hand, each square has a weight instead of `P / (P - 1)`: with a
prompt's share of all decisions `h_p = n_p / sum n`, and `H = sum h_p^2`,

    sum of (x_p - r n_p)^2 / (1 - 2 h_p + H) / (sum n)^2

If the ratios of prompts, x_p / n_p, differ with one variance v, the expectation of a square is
`n_p^2 v (1 - 2 h_p + H)`, so that this has no bias, however unequal the prompts are. If the variance
of x_p grows with n_p instead, as that of independent decisions does, it is too large, never too small.
For prompts of one length it is the formula above.

Student's t then has the degrees of freedom of such a sum of squares (Bell and McCaffrey 2002, Survey
Methodology 28:169), from 1 to P - 1:

    1 / (sum of h_p^2 + sum over p != q of h_p^2 h_q^2 / ((1 - h_p) (1 - h_q)))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.students_t import find_quantile


@dataclass(frozen=True)
class Ratio:
    """A mean over decisions of values from 0 to 1.

    Attributes:
        value: None without decisions.
        low: Lower limit of its 95 % interval over prompts; None with fewer than two prompts.
        high: Upper limit.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


UNKNOWN_RATIO = Ratio(None)


@dataclass
class RatioSums:
    """Sums over prompts from which ratios and their intervals follow.

    Attributes:
        sums: Of x, n, x², x n, n², and the number of prompts with n > 0. # (num_ratios, 6)
    """

    num_ratios: int
    sums: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.num_ratios, 6))

    def add(self, x: NDArray[Any], n: NDArray[Any]) -> None:
        """Add whole prompts.

        Args:
            x: Sum of the values over each prompt's decisions. # (num_ratios, num_prompts)
            n: Number of the decisions. # (num_ratios, num_prompts)
        """
        self.sums += sum_prompts(x, n)

    def find_ratios(self) -> list[Ratio]:
        """Return each ratio with its interval."""
        return find_ratios(self.sums)


def sum_prompts(x: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sums of x, n, x², x n, n² and prompts over the last axis.

    Returns:
        # (…, 6)
    """
    return np.stack(
        [
            x.sum(axis=-1),
            n.sum(axis=-1),
            (x * x).sum(axis=-1),
            (x * n).sum(axis=-1),
            (n * n).sum(axis=-1),
            (n > 0).sum(axis=-1),
        ],
        axis=-1,
    )


def find_ratios(sums: NDArray[np.float64]) -> list[Ratio]:
    """Return the ratio of each row of sums, with its interval.

    Args:
        sums: As `sum_prompts` returns them. # (num_ratios, 6)
    """
    return [_find_ratio(*map(float, row)) for row in sums]


def _find_ratio(x: float, n: float, xx: float, xn: float, nn: float, num_prompts: float) -> Ratio:
    if n == 0:
        return UNKNOWN_RATIO
    ratio = x / n
    if num_prompts < 2:
        return Ratio(ratio)
    between = max(0.0, xx - 2 * ratio * xn + ratio * ratio * nn)
    by_prompts = num_prompts / (num_prompts - 1) * between / n**2
    shrunk = (x + 0.5) / (n + 1)
    by_decisions = shrunk * (1 - shrunk) / n
    reach = find_quantile(int(num_prompts) - 1) * max(by_prompts, by_decisions) ** 0.5
    return Ratio(ratio, max(0.0, ratio - reach), min(1.0, ratio + reach))


def weigh_squares(h: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of squares, `1 / (1 - 2 h + H)`, see above.

    Args:
        h: Shares to return the weights of. # (num_weights,)
        shares: Share of every prompt, at least two. # (num_prompts,)

    Returns:
        # (num_weights,)
    """
    return 1 / (1 - 2 * h + float(shares @ shares))


def find_degrees_of_freedom(shares: NDArray[np.float64]) -> float:
    """Return the degrees of freedom of a sum of squares over prompts, see above.

    Args:
        shares: Share of every prompt, at least two. # (num_prompts,)
    """
    w = shares * shares / (1 - shares)
    return 1 / float(shares @ shares + w.sum() ** 2 - w @ w)
