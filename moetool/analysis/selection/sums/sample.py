"""Some of a layer's decisions, as many as a simulated router takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Decisions of a layer: their weights say how uneven those of all are.
MOST_DECISIONS = 4096


@dataclass
class DecisionSample:
    """The decisions with the smallest keys: the same in whatever order decisions come.

    Attributes:
        weights: Of each choice, 1 in a trace without weights; NaN where no expert ran.
            # (num_decisions, top_k)
        inverse_size: One over the decisions of the prompt. # (num_decisions,)
    """

    weights: NDArray[np.float64]
    inverse_size: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    _key: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    @classmethod
    def empty(cls, top_k: int) -> DecisionSample:
        """Return the sample before any decision is added."""
        return cls(np.zeros((0, top_k)))

    def add(
        self,
        key: NDArray[np.uint64],
        weights: NDArray[np.float64],
        inverse_size: NDArray[np.float64],
    ) -> None:
        """Take decisions into account.

        Args:
            key: # (num_decisions,)
            weights: As in the sample. # (num_decisions, top_k)
            inverse_size: # (num_decisions,)
        """
        # Only rows that were not checked can have more experts than top-k.
        weights = weights[:, : self.weights.shape[1]]
        keys = np.concatenate([self._key, key])
        order = np.argsort(keys, kind="stable")[:MOST_DECISIONS]
        self._key = keys[order]
        self.weights = np.concatenate([self.weights, weights])[order]
        self.inverse_size = np.concatenate([self.inverse_size, inverse_size])[order]
