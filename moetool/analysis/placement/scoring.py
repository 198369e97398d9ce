"""Scores of placements on decisions that they were not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.layer_statistics import BatchLoads, shift_ids
from moetool.analysis.statistics.decision_sizes import Sizes, make_sizes
from moetool.trace.decisions import NO_EXPERT

_BITS = 64
# Numbers held at a time for decisions of experts with replicas.
_CELLS_AT_ONCE = 2**22


@dataclass(frozen=True)
class PlacementScore:
    """Load and traffic of a placement; None where unknown.

    An expert with replicas serves each token from one of them at random.

    Attributes:
        batch_imbalance: Load of the busiest GPU over the mean of all, averaged over batches.
        global_imbalance: The same of all decisions together.
        fan_out: GPUs that a token's experts are on, on average.
        node_fan_out: Nodes that they are on.
        all_to_all_bytes_per_token: Bytes sent for a token to GPUs other than its own and back.
        cross_node_bytes_per_token: Bytes sent to nodes other than its own and back, if a node gets
            each token once.
    """

    batch_imbalance: float | None
    global_imbalance: float | None
    fan_out: float | None
    node_fan_out: float | None
    all_to_all_bytes_per_token: float | None = None
    cross_node_bytes_per_token: float | None = None


def share_out(
    physical_to_logical: NDArray[np.int64], *, num_experts: int, num_parts: int
) -> NDArray[np.float64]:
    """Return the share of each expert's load that every GPU, or every node, serves.

    Args:
        physical_to_logical: Expert of each slot; slots of a part follow each other. # (num_slots,)
        num_experts: Number of experts.
        num_parts: Number of GPUs or nodes.

    Returns:
        Every row adds up to 1. # (num_experts, num_parts)
    """
    part = np.arange(len(physical_to_logical)) // (len(physical_to_logical) // num_parts)
    slots = np.zeros((num_experts, num_parts))
    np.add.at(slots, (physical_to_logical, part), 1)
    share: NDArray[np.float64] = slots / slots.sum(axis=1, keepdims=True)
    return share


def measure_imbalance(loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest load over the mean of each row; 1 for a row without any load.

    Args:
        loads: # (num_rows, num_parts)

    Returns:
        # (num_rows,)
    """
    mean = loads.mean(axis=1)
    ratio = np.ones(len(loads))
    np.divide(loads.max(axis=1), mean, out=ratio, where=mean > 0)
    return ratio


def count_reached(shifted: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many parts each decision's experts are on; the expected number if there are replicas.

    Args:
        shifted: Ids from 1 on; 0 is on no part. # (num_decisions, top_k)
        share: As `share_out` returns it. # (num_experts, num_parts)

    Returns:
        # (num_decisions,)
    """
    if (share.max(axis=1) == 1).all():
        return _count_distinct(shifted, share.argmax(axis=1), num_parts=share.shape[1])
    # The chance that an expert's token does not go to a part. # (num_experts + 1, num_parts)
    missed = np.vstack([np.ones(share.shape[1]), 1 - share])
    num_decisions, top_k = shifted.shape
    reached = np.empty(num_decisions)
    step = max(1, _CELLS_AT_ONCE // (top_k * share.shape[1]))
    for start in range(0, num_decisions, step):
        chances = missed[shifted[start : start + step]].prod(axis=1)
        reached[start : start + step] = (1 - chances).sum(axis=1)
    return reached


def _count_distinct(
    shifted: NDArray[np.int64], part: NDArray[np.int64], *, num_parts: int
) -> NDArray[np.float64]:
    """Return how many different parts the experts of each decision are on, by one bit per part."""
    reached = np.zeros(len(shifted))
    for first in range(0, num_parts, _BITS):
        bit = part - first
        is_here = (bit >= 0) & (bit < _BITS)
        word = np.left_shift(np.uint64(1), np.where(is_here, bit, 0).astype(np.uint64))
        word = np.concatenate([np.zeros(1, dtype=np.uint64), np.where(is_here, word, 0)])
        reached += np.bitwise_count(np.bitwise_or.reduce(word.astype(np.uint64)[shifted], axis=1))
    return reached


@dataclass(frozen=True)
class Scored:
    """Scores of some decisions under one placement.

    Attributes:
        reached: GPUs that each decision reaches. # (num_decisions,)
        imbalance: Of each batch that the decisions complete. # (num_batches,)
        last: Index of the decision that completes each batch. # (num_batches,)
    """

    reached: NDArray[np.float64]
    imbalance: NDArray[np.float64]
    last: NDArray[np.int64]


class LayerScorer:
    """Adds up the scores of several placements of one layer, window by window.

    Args:
        placements: Expert of each slot, by the name of the placement.
        num_experts: Ids from here on, and below 0, are not counted.
        cluster: GPUs and nodes of the slots.
        tokens_per_batch: Decisions of each batch.
    """

    def __init__(
        self,
        placements: Mapping[str, NDArray[np.int64]],
        *,
        num_experts: int,
        cluster: Cluster,
        tokens_per_batch: int,
    ) -> None:
        self._num_experts, self._tokens_per_batch = num_experts, tokens_per_batch
        self._batches = BatchLoads(num_experts, tokens_per_batch)
        self._load = np.zeros(num_experts, dtype=np.int64)
        self._num_ran = np.zeros(0, dtype=np.int64)
        self._num_decisions = self._num_batches = 0
        self._gpu_share, self._node_share = (
            {
                name: share_out(slots, num_experts=num_experts, num_parts=num_parts)
                for name, slots in placements.items()
            }
            for num_parts in (cluster.num_gpus, cluster.num_nodes)
        )
        self._imbalance = dict.fromkeys(placements, 0.0)
        self._gpus = dict.fromkeys(placements, 0.0)
        self._nodes = dict.fromkeys(placements, 0.0)

    def add(self, experts: NDArray[np.int64]) -> dict[str, Scored]:
        """Score some decisions, in their order, and return their scores by placement.

        Args:
            experts: # (num_decisions, top_k)
        """
        shifted = shift_ids(experts, self._num_experts)
        self._load += np.bincount(shifted.ravel(), minlength=self._num_experts + 1)[1:]
        num_ran = np.bincount((experts != NO_EXPERT).sum(axis=1), minlength=len(self._num_ran))
        num_ran[: len(self._num_ran)] += self._num_ran
        self._num_ran = num_ran
        loads = self._batches.add(experts).astype(np.float64)
        ends = (np.arange(len(loads)) + self._num_batches + 1) * self._tokens_per_batch
        last = ends - self._num_decisions - 1
        self._num_decisions += len(experts)
        self._num_batches += len(loads)
        scored = {}
        for name, share in self._gpu_share.items():
            scored[name] = mine = Scored(
                reached=count_reached(shifted, share),
                imbalance=measure_imbalance(loads @ share),
                last=last,
            )
            self._imbalance[name] += float(mine.imbalance.sum())
            self._gpus[name] += float(mine.reached.sum())
            nodes = count_reached(shifted, self._node_share[name])
            self._nodes[name] += float(nodes.sum())
        return scored

    @property
    def num_batches(self) -> int:
        """Complete batches so far."""
        return self._num_batches

    @property
    def num_decisions(self) -> int:
        """Decisions so far."""
        return self._num_decisions

    @property
    def sizes(self) -> Sizes:
        """Numbers of experts that decisions ran so far, and how many decisions did."""
        return make_sizes(self._num_ran)

    def scores(self) -> dict[str, PlacementScore]:
        """Return the scores of every placement so far, without bytes."""
        return {
            name: PlacementScore(
                batch_imbalance=_divide(self._imbalance[name], self._num_batches),
                global_imbalance=measure_global_imbalance(self._load, share),
                fan_out=_divide(self._gpus[name], self._num_decisions),
                node_fan_out=_divide(self._nodes[name], self._num_decisions),
            )
            for name, share in self._gpu_share.items()
        }


def measure_global_imbalance(load: NDArray[np.int64], share: NDArray[np.float64]) -> float | None:
    """Return the busiest GPU's load over the mean of all; None without any load.

    Args:
        load: Assignments of each expert. # (num_experts,)
        share: As `share_out` returns it. # (num_experts, num_gpus)
    """
    return float(measure_imbalance((load @ share)[None])[0]) if load.any() else None


def _divide(total: float, number: int) -> float | None:
    return total / number if number else None
