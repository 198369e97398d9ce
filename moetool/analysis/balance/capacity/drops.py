"""Capacity: the assignments that experts of limited size would drop.

An expert takes at most `C = ceil(factor * n * k / E)` assignments of a batch of `n` tokens
(Switch Transformer, arXiv 2101.03961, 2.2; `get_capacity` of Megatron-LM). The number that is dropped
does not depend on who comes first; who is dropped does:

- `position`: tokens come in the order of the batch, as in Switch;
- `probability`: the largest weights come first, equal ones in the order of the batch.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.batches import Batches
from moetool.analysis.balance.capacity.kinds import NUM_DECILES, BatchKinds, find_decile

Policy = Literal["position", "probability"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
FACTORS = (1.0, 1.25, 1.5, 2.0)

# Loads of experts in batches that are counted at a time.
_MOST_CELLS = 1 << 22
# Keeps a product that is a whole number up to rounding from being rounded up.
_ROUNDING = 1e-9


def find_capacity(
    factor: float, num_tokens: NDArray[np.int64], *, top_k: int, num_experts: int
) -> NDArray[np.int64]:
    """Return the most assignments that an expert takes of batches of these sizes."""
    even = factor * num_tokens * top_k / num_experts
    capacity: NDArray[np.int64] = np.ceil(even - _ROUNDING).astype(np.int64)
    return capacity


class DropCounter:
    """Counts the assignments of one layer that would be dropped, batch by batch.

    Attributes:
        num_dropped: By position decile, for each policy. # (num_policies, num_factors, 10)
        num_assignments: By position decile. # (10,)
        num_batches: Batches so far.
        num_tokens: Their tokens.
        kinds: The batches by the sizes of their decisions; empty where top-k is unknown.
        sum_of_violations: Of each batch's largest load over the mean, minus 1; of batches in which
            an expert ran.
        num_violations: Batches of that sum.
        has_places: Whether it is known which places of a batch the dropped assignments have.
        has_weights: Whether weights were given, without which nothing is counted for `probability`.

    Args:
        num_experts: Experts of the layer.
        top_k: Of the layer; None if it is unknown, as it may be for loads.
    """

    def __init__(self, *, num_experts: int, top_k: int | None) -> None:
        self.num_dropped = np.zeros((len(POLICIES), len(FACTORS), NUM_DECILES), dtype=np.int64)
        self.num_assignments = np.zeros(NUM_DECILES, dtype=np.int64)
        self.num_batches = self.num_tokens = 0
        self.kinds = BatchKinds(top_k=top_k or 0)
        self.sum_of_violations, self.num_violations = 0.0, 0
        self.has_places, self.has_weights = True, False
        self.num_experts, self.top_k = num_experts, top_k

    def add(self, batches: Batches | None) -> None:
        """Count batches whose columns are experts and, if they are known, weights.

        Both have the shape (num_decisions, top_k); experts below 0 were not chosen.
        """
        if batches is not None:
            for part in batches.split(max(1, _MOST_CELLS // self.num_experts)):
                self._add(part)

    def _add(self, batches: Batches) -> None:
        experts, *weights = batches.columns
        assert self.top_k is not None
        self.kinds.add(batches.sizes, np.minimum((experts >= 0).sum(axis=1), self.num_experts))
        self.num_batches += len(batches.sizes)
        self.num_tokens += int(batches.sizes.sum())
        self.has_weights = bool(weights)
        batch = batches.batch
        decile = find_decile(batches.place, batches.sizes[batch])
        key = (batch[:, None] * self.num_experts + experts).ravel()
        decile = np.repeat(decile, experts.shape[1])
        weight = weights[0].ravel() if weights else None
        ran = (experts >= 0).ravel()
        if not ran.all():
            key, decile = key[ran], decile[ran]
            weight = None if weight is None else weight[ran]
        load = np.bincount(key, minlength=len(batches.sizes) * self.num_experts)
        load = load.reshape(len(batches.sizes), self.num_experts)
        self._add_violations(load)
        self.num_assignments += np.bincount(decile, minlength=NUM_DECILES)
        capacities = [
            find_capacity(factor, batches.sizes, top_k=self.top_k, num_experts=self.num_experts)
            for factor in FACTORS
        ]
        # Assignments to experts that keep all of theirs need not be put in order.
        is_full = (load > capacities[0][:, None]).ravel()
        kept = is_full[key]
        key, decile = key[kept], decile[kept]
        for index, policy in enumerate(POLICIES):
            if policy == "position":
                order = sort_stably(key)
            elif weight is None:
                continue
            else:
                by_weight = sort_stably(~order_floats(weight[kept]))
                order = by_weight[sort_stably(key[by_weight])]
            ordered = key[order]
            rank, of, place = _rank(ordered), ordered // self.num_experts, decile[order]
            # A larger capacity drops a part of what a smaller one drops.
            for number, capacity in enumerate(capacities):
                is_dropped = rank >= capacity[of]
                rank, of, place = rank[is_dropped], of[is_dropped], place[is_dropped]
                self.num_dropped[index, number] += np.bincount(place, minlength=NUM_DECILES)

    def add_loads(self, loads: NDArray[np.int64]) -> None:
        """Count batches of which only the load of each expert is known.

        Their dropped assignments count as of the first decile, and `has_places` becomes false.

        Args:
            loads: # (num_batches, num_experts)
        """
        self.has_places = False
        total = loads.sum(axis=1)
        if self.top_k is not None:
            self.kinds.add_full(total // self.top_k)
            self.num_tokens += int((total // self.top_k).sum())
        self.num_batches += len(loads)
        self._add_violations(loads)
        self.num_assignments[0] += int(total.sum())
        for number, factor in enumerate(FACTORS):
            # The capacity follows from the assignments, whatever top-k is.
            num_tokens, k = (total, 1) if self.top_k is None else (total // self.top_k, self.top_k)
            capacity = find_capacity(factor, num_tokens, top_k=k, num_experts=self.num_experts)
            excess = np.maximum(loads - capacity[:, None], 0)
            self.num_dropped[:, number, 0] += int(excess.sum())

    def _add_violations(self, load: NDArray[np.int64]) -> None:
        total = load.sum(axis=1)
        ran = total > 0
        violation = load.max(axis=1)[ran] * self.num_experts / total[ran] - 1
        self.sum_of_violations += float(violation.sum())
        self.num_violations += int(ran.sum())


def order_floats(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return whole numbers in the same order as numbers."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    top = np.uint32(0x80000000)
    ordered: NDArray[np.uint32] = np.where(bits & top, ~bits, bits | top)
    return ordered


def sort_stably(key: NDArray[Any]) -> NDArray[np.intp]:
    """Return the order of numbers from 0 to 2**32 - 1; equal ones keep theirs.

    numpy sorts 16-bit numbers by radix, several times as fast as longer ones.
    """
    order = np.argsort((key & 0xFFFF).astype(np.uint16), kind="stable")
    if int(key.max(initial=0)) > 0xFFFF:
        high = (key >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    return order


def _rank(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each number's rank among those equal to it, from 0."""
    if not len(ascending):
        return ascending
    starts = np.flatnonzero(np.diff(ascending, prepend=-1))
    return np.arange(len(ascending)) - np.repeat(starts, np.diff(starts, append=len(ascending)))
