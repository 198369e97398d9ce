"""Sums over a layer's decisions that a placement is fitted on, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class BatchLoads:
    """Loads of consecutive batches of a layer's decisions.

    The decisions after the last complete batch wait for more.

    Args:
        num_experts: Ids from here on, and below 0, are not counted.
        tokens_per_batch: Decisions of each batch.
    """

    def __init__(self, num_experts: int, tokens_per_batch: int) -> None:
        self._num_experts = num_experts
        self._tokens_per_batch = tokens_per_batch
        self._waiting = np.zeros(num_experts, dtype=np.int64)
        self._num_waiting = 0

    def add(self, experts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the loads of the batches that these decisions complete.

        Args:
            experts: # (num_decisions, top_k)

        Returns:
            # (num_batches, num_experts)
        """
        batch = (self._num_waiting + np.arange(len(experts))) // self._tokens_per_batch
        num_batches, self._num_waiting = divmod(
            self._num_waiting + len(experts), self._tokens_per_batch
        )
        width = self._num_experts + 1
        cell = batch[:, None] * width + shift_ids(experts, self._num_experts)
        counts = np.bincount(cell.ravel(), minlength=(num_batches + 1) * width)
        loads = counts.reshape(-1, width)[:, 1:]
        loads[0] += self._waiting
        self._waiting = loads[num_batches].copy()
        return loads[:num_batches]


@dataclass(frozen=True)
class LayerStatistics:
    """Sums over some of a layer's decisions. Those of two sets of prompts can be added.

    Attributes:
        load: Assignments of each expert. # (num_experts,)
        pairs: Decisions that chose both; 0 on the diagonal. # (num_experts, num_experts)
        num_batches: Complete batches of consecutive decisions.
        batch_load: Sum of the batches' loads. # (num_experts,)
        batch_products: Sum of the products of two experts' loads. # (num_experts, num_experts)
    """

    load: NDArray[np.int64]
    pairs: NDArray[np.int64]
    num_decisions: int
    num_batches: int
    batch_load: NDArray[np.float64]
    batch_products: NDArray[np.float64]

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        return LayerStatistics(
            load=self.load + other.load,
            pairs=self.pairs + other.pairs,
            num_decisions=self.num_decisions + other.num_decisions,
            num_batches=self.num_batches + other.num_batches,
            batch_load=self.batch_load + other.batch_load,
            batch_products=self.batch_products + other.batch_products,
        )

    @property
    def covariance(self) -> NDArray[np.float64] | None:
        """Covariance of two experts' loads over batches; None with fewer than two batches."""
        if self.num_batches < 2:
            return None
        mean = self.batch_load / self.num_batches
        return self.batch_products / self.num_batches - np.outer(mean, mean)


class StatisticsCounter:
    """Adds up a layer's statistics, window by window.

    Args:
        num_experts: Ids from here on, and below 0, are not counted.
        tokens_per_batch: Decisions of each batch.
    """

    def __init__(self, num_experts: int, tokens_per_batch: int) -> None:
        self._num_experts = num_experts
        self._batches = BatchLoads(num_experts, tokens_per_batch)
        self._load = np.zeros(num_experts, dtype=np.int64)
        self._pairs = np.zeros((num_experts, num_experts), dtype=np.int64)
        self._num_decisions = self._num_batches = 0
        self._batch_load = np.zeros(num_experts)
        self._batch_products = np.zeros((num_experts, num_experts))

    def add(self, experts: NDArray[np.int64]) -> None:
        """Count some decisions, in their order.

        Args:
            experts: # (num_decisions, top_k)
        """
        shifted = shift_ids(experts, self._num_experts)
        self._load += np.bincount(shifted.ravel(), minlength=self._num_experts + 1)[1:]
        self._pairs += count_pairs(shifted, self._num_experts)
        self._num_decisions += len(experts)
        loads = self._batches.add(experts).astype(np.float64)
        self._num_batches += len(loads)
        self._batch_load += loads.sum(axis=0)
        self._batch_products += loads.T @ loads

    @property
    def statistics(self) -> LayerStatistics:
        """The sums so far."""
        return LayerStatistics(
            load=self._load,
            pairs=self._pairs + self._pairs.T,
            num_decisions=self._num_decisions,
            num_batches=self._num_batches,
            batch_load=self._batch_load,
            batch_products=self._batch_products,
        )


def shift_ids(experts: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """Return ids from 1 on, and 0 for what is not an expert that a GPU holds.

    That is padding, and experts that return their input unchanged, whose ids come last.
    """
    return np.where((experts >= 0) & (experts < num_experts), experts + 1, 0)


def count_pairs(shifted: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """Return how many decisions chose both of two experts, each pair in one of its two cells.

    Args:
        shifted: Ids from 1 on; 0 is not counted. # (num_decisions, top_k)
        num_experts: Number of experts.

    Returns:
        # (num_experts, num_experts)
    """
    width = num_experts + 1
    pairs = np.zeros(width * width, dtype=np.int64)
    for column in range(shifted.shape[1] - 1):
        cell = shifted[:, column, None] * width + shifted[:, column + 1 :]
        pairs += np.bincount(cell.ravel(), minlength=width * width)
    return pairs.reshape(width, width)[1:, 1:]
