"""Places of tokens within their prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def find_places(prompt: Ints, stack: Ints) -> tuple[Ints, Ints]:
    """Return how many earlier tokens each token's prompt has in its stack, and how many in all.

    Args:
        prompt: Of each token; tokens of a prompt and stack follow each other. # (num_tokens,)
        stack: Index of the token's stack. # (num_tokens,)

    Returns:
        # (num_tokens,) each
    """
    begins = np.flatnonzero(np.diff(prompt, prepend=-1) | np.diff(stack, prepend=-1))
    sizes = np.diff(begins, append=len(prompt))
    return np.arange(len(prompt)) - np.repeat(begins, sizes), np.repeat(sizes, sizes)
