"""Expert choice as a counterfactual: every expert takes the tokens that it scores highest.

Of each batch of `n` tokens, an expert takes the `C = ceil(factor * n * k / E)` tokens of the largest
recorded probabilities (Zhou et al. 2022, arXiv 2202.09368), equal ones in the order of the batch. The
load is then even by construction; a token may get no expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.batches import Batches
from moetool.analysis.balance.capacity.drops import FACTORS, find_capacity


class ExpertChoiceCounter:
    """Counts the tokens of one layer that expert choice would leave without an expert.

    Attributes:
        num_tokens: Tokens so far.
        num_left: Of these, without an expert, at each capacity factor. # (num_factors,)
        expected_left: The same for probabilities without any order. # (num_factors,)

    Args:
        num_experts: Experts of the layer.
        top_k: Of the layer.
    """

    def __init__(self, *, num_experts: int, top_k: int) -> None:
        self.num_tokens = 0
        self.num_left = np.zeros(len(FACTORS), dtype=np.int64)
        self.expected_left = np.zeros(len(FACTORS))
        self._num_experts, self._top_k = num_experts, top_k

    def add(self, batches: Batches | None) -> None:
        """Count batches whose column is probabilities: (num_decisions, num_experts)."""
        if batches is None:
            return
        (probabilities,) = batches.columns
        capacities = np.stack(
            [
                find_capacity(
                    factor, batches.sizes, top_k=self._top_k, num_experts=self._num_experts
                )
                for factor in FACTORS
            ],
            axis=1,
        ).clip(max=batches.sizes[:, None])  # (num_batches, num_factors)
        for start, size, capacity in zip(batches.starts, batches.sizes, capacities, strict=True):
            order = _sort_tokens(probabilities[start : start + size])
            self.num_tokens += int(size)
            for index, number in enumerate(capacity):
                is_chosen = np.zeros(size, dtype=bool)
                is_chosen[order[:, :number].ravel()] = True
                self.num_left[index] += int(size - is_chosen.sum())
                self.expected_left[index] += size * (1 - number / size) ** self._num_experts


def _sort_tokens(probabilities: NDArray[np.float16]) -> NDArray[np.intp]:
    """Return each expert's tokens, the largest probability first: (num_experts, num_tokens)."""
    # The bits of numbers above 0 are in their order, and are sorted by radix.
    bits = np.ascontiguousarray(probabilities.T).view(np.uint16) & 0x7FFF
    return np.argsort(~bits, axis=1, kind="stable")
