"""Decisions on many hypotheses at once, with a bound on the share of false discoveries.

Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57:289. Unknown p-values, NaN, are of hypotheses
that nothing tested: they do not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Share of false discoveries that is accepted among discoveries.
FALSE_DISCOVERY_RATE = 0.05


def find_q_values(p_values: Floats) -> Floats:
    """Return the q-value of each p-value: the smallest rate of false discoveries that admits it.

    It is the smallest of `p * m / rank` over this and all larger p-values, m being their number.
    NaN stays NaN.

    Args:
        p_values: Of any shape; all of them are one family.

    Returns:
        # (the same shape)
    """
    flat = p_values.ravel()
    q_values = np.full(flat.shape, np.nan)
    (known,) = np.nonzero(~np.isnan(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    scaled = flat[order] * len(order) / np.arange(1, len(order) + 1)
    q_values[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return q_values.reshape(p_values.shape)


def find_discoveries(p_values: Floats, *, rate: float = FALSE_DISCOVERY_RATE) -> NDArray[np.bool_]:
    """Return which hypotheses are rejected; those of unknown p-values never are.

    Args:
        p_values: Of any shape; all of them are one family.
        rate: Expected share of false discoveries.
    """
    discoveries: NDArray[np.bool_] = find_q_values(p_values) <= rate
    return discoveries
