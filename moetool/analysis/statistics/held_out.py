"""A sample of the prompts that predictions are not fitted on, to score them on."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Tokens that are kept to score predictions on: their hit rate is then known to half a
# percentage point, and all layers of a large model take 30 MB.
MOST_TOKENS = 16_384


@dataclass
class HeldOutSample:
    """Known and wanted values of the tokens of whole prompts: those of the smallest hashes.

    The sample is the same in whatever order the prompts come.

    Attributes:
        prompts: By hash of the prompt and by index of a prediction, such as that of the next
            layer's experts: what is known and what is to be predicted of each token, as whole
            numbers of any width. # (num_tokens, any number) each
    """

    prompts: dict[int, Mapping[int, tuple[Any, Any]]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    # The largest hash first.
    _order: list[int] = field(default_factory=list)
    _num_tokens: int = 0

    def wants(self, prompt_hash: int) -> bool:
        """Return whether a prompt would be kept for now."""
        return self._num_tokens < MOST_TOKENS or prompt_hash < -self._order[0]

    def add(self, prompt_hash: int, num_tokens: int, values: Mapping[int, tuple[Any, Any]]) -> None:
        """Add a prompt, and leave out those that are not needed for the number of tokens.

        Args:
            num_tokens: Tokens of the prompt in any layer.
            values: As in `prompts`.
        """
        self.prompts[prompt_hash] = values
        self._sizes[prompt_hash] = num_tokens
        heapq.heappush(self._order, -prompt_hash)
        self._num_tokens += num_tokens
        while self._num_tokens - self._sizes[-self._order[0]] >= MOST_TOKENS:
            last = -heapq.heappop(self._order)
            self._num_tokens -= self._sizes.pop(last)
            del self.prompts[last]

    def collect(self, index: int) -> tuple[Ints, Ints, Ints]:
        """Return what is known and what is to be predicted of all tokens, and their prompts.

        Returns:
            # (num_tokens, any number) twice, and running numbers of prompts # (num_tokens,)
        """
        found = [
            (number, *self.prompts[key][index])
            for number, key in enumerate(sorted(self.prompts))
            if index in self.prompts[key]
        ]
        if not found:
            empty = np.zeros((0, 1), dtype=np.int64)
            return empty, empty, np.zeros(0, dtype=np.int64)
        return (
            np.concatenate([known for _, known, _ in found]).astype(np.int64),
            np.concatenate([wanted for _, _, wanted in found]).astype(np.int64),
            np.repeat(
                np.array([number for number, _, _ in found]),
                [len(known) for _, known, _ in found],
            ),
        )
