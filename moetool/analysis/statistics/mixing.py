"""Numbers that look random but depend on nothing else than other numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mix_bits(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of which neighbours are unrelated, one for each key.

    This is the finalizer of splitmix64 (Steele, Lea and Flood 2014); different keys have different
    numbers.
    """
    mixed = keys
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
