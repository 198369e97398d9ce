"""Halves of a trace's prompts, and a bounded sample of the second half's decisions."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
# As in the trace's column, which saves memory.
Experts = NDArray[np.int16]

_HALF = 1 << 63
# Tokens that are kept to score predictions on: their hit rate is then known to a quarter of a
# percentage point, and all layers of a large model take 60 MB.
MOST_TOKENS = 32_768


def hash_prompts(prompts: Sequence[str]) -> NDArray[np.uint64]:
    """Return a number for each prompt id that looks random, but depends on nothing else.

    Prompts whose first bit is 0 are the half to fit on.
    """
    digests = (
        blake2b(prompt.encode(errors="backslashreplace"), digest_size=8).digest()
        for prompt in prompts
    )
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)


def find_fit_half(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which prompts predictions are fitted on."""
    return hashes < np.uint64(_HALF)


@dataclass
class HeldOutSample:
    """Experts of whole prompts of the scored half: those of the smallest hashes.

    The sample is the same in whatever order the prompts come.

    Attributes:
        prompts: By hash of the prompt and by transition, the experts of the prompt's tokens in
            a layer and in the next. # (num_tokens, top_k) and (num_tokens, top_k of the next)
    """

    prompts: dict[int, dict[int, tuple[Experts, Experts]]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    # The largest hash first.
    _order: list[int] = field(default_factory=list)
    _num_tokens: int = 0

    def wants(self, prompt_hash: int) -> bool:
        """Return whether a prompt would be kept for now."""
        return self._num_tokens < MOST_TOKENS or prompt_hash < -self._order[0]

    def add(
        self, prompt_hash: int, num_tokens: int, experts: dict[int, tuple[Experts, Experts]]
    ) -> None:
        """Add a prompt, and leave out those that are not needed for the number of tokens.

        Args:
            num_tokens: Tokens of the prompt in any layer.
            experts: By transition.
        """
        self.prompts[prompt_hash] = experts
        self._sizes[prompt_hash] = num_tokens
        heapq.heappush(self._order, -prompt_hash)
        self._num_tokens += num_tokens
        while self._num_tokens - self._sizes[-self._order[0]] >= MOST_TOKENS:
            last = -heapq.heappop(self._order)
            self._num_tokens -= self._sizes.pop(last)
            del self.prompts[last]

    def collect(self, transition: int) -> tuple[Ints, Ints, Ints]:
        """Return the experts of a transition: in the layer, in the next, and prompts' numbers."""
        found = [
            (number, *self.prompts[key][transition])
            for number, key in enumerate(sorted(self.prompts))
            if transition in self.prompts[key]
        ]
        if not found:
            empty = np.zeros((0, 1), dtype=np.int64)
            return empty, empty, np.zeros(0, dtype=np.int64)
        return (
            np.concatenate([experts for _, experts, _ in found]).astype(np.int64),
            np.concatenate([following for _, _, following in found]).astype(np.int64),
            np.repeat(
                np.array([number for number, _, _ in found]),
                [len(experts) for _, experts, _ in found],
            ),
        )
