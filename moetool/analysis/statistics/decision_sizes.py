"""Numbers of experts that decisions ran: a choice that ran none leaves a decision with fewer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Pairs of the number of experts that a decision chose, and how many decisions did.
Sizes = tuple[tuple[int, int], ...]


def make_sizes(num_decisions: NDArray[np.int64] | Mapping[int, int]) -> Sizes:
    """Return the sizes of decisions from how many chose 0, 1, 2, … experts."""
    pairs = (
        num_decisions.items() if isinstance(num_decisions, Mapping) else enumerate(num_decisions)
    )
    return tuple((int(size), int(number)) for size, number in pairs if size and number)
