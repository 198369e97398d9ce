"""Sums over the tokens that chose each expert, as REAP's observer keeps them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass
class SaliencySums:
    """Sums over all assignments of a layer; `g` is a weight, `f` an expert's output before it.

    Lasby et al., REAP the Experts (arXiv 2510.13999), equation 9: an expert's saliency is the mean
    of `g * norm(f)` over the tokens that chose it.

    Attributes:
        num_tokens: Tokens with a decision.
        frequency: Assignments of each expert. # (num_experts,)
        norms: Sum of `norm(f)`, the Euclidean one. # (num_experts,)
        weighted_norms: Sum of `g * norm(f)`. # (num_experts,)
        weights: Sum of `g`. # (num_experts,)
        largest: The largest element of any `f`, at least 0. # (num_experts,)
    """

    num_tokens: int
    frequency: NDArray[np.int64]
    norms: NDArray[np.float64]
    weighted_norms: NDArray[np.float64]
    weights: NDArray[np.float64]
    largest: NDArray[np.float32]

    @classmethod
    def empty(cls, num_experts: int) -> SaliencySums:
        """Return the sums over no tokens."""
        return cls(
            num_tokens=0,
            frequency=np.zeros(num_experts, dtype=np.int64),
            norms=np.zeros(num_experts),
            weighted_norms=np.zeros(num_experts),
            weights=np.zeros(num_experts),
            largest=np.zeros(num_experts, dtype=np.float32),
        )

    def add(
        self,
        experts: NDArray[np.int64],
        weights: NDArray[np.float64],
        norms: NDArray[np.float64],
        largest: NDArray[np.float32],
        *,
        num_tokens: int,
    ) -> None:
        """Add some assignments, each array with one entry for each, and the tokens behind them."""
        size = len(self.frequency)
        self.num_tokens += num_tokens
        self.frequency = self.frequency + np.bincount(experts, minlength=size)
        self.norms = self.norms + np.bincount(experts, weights=norms, minlength=size)
        self.weighted_norms = self.weighted_norms + np.bincount(
            experts, weights=weights * norms, minlength=size
        )
        self.weights = self.weights + np.bincount(experts, weights=weights, minlength=size)
        np.maximum.at(self.largest, experts, largest)

    def add_sums(self, other: SaliencySums) -> None:
        """Add the sums over other tokens."""
        self.num_tokens += other.num_tokens
        self.frequency = self.frequency + other.frequency
        self.norms = self.norms + other.norms
        self.weighted_norms = self.weighted_norms + other.weighted_norms
        self.weights = self.weights + other.weights
        self.largest = np.maximum(self.largest, other.largest)

    def take(self) -> SaliencySums:
        """Return the sums so far, and start again from none."""
        taken = replace(self)
        vars(self).update(vars(SaliencySums.empty(len(self.frequency))))
        return taken

    @property
    def mean_norms(self) -> NDArray[np.float64]:
        """Mean of `norm(f)` over the tokens that chose each expert; 0 without any."""
        mean: NDArray[np.float64] = self.norms / np.maximum(1, self.frequency)
        return mean

    @property
    def saliency(self) -> NDArray[np.float64]:
        """Mean of `g * norm(f)` over the tokens that chose each expert; 0 without any."""
        mean: NDArray[np.float64] = self.weighted_norms / np.maximum(1, self.frequency)
        return mean
