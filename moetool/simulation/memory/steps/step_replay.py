"""Replay the steps of a long generation, most of which do the same to most of the memory.

Each of torch's pools depends on no other as long as the device has room. The pool for small blocks
gets the same requests in most steps, and the one for large blocks gets few.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator
from moetool.simulation.memory.allocator.pools import choose_pool, round_up
from moetool.simulation.memory.allocator.steady_pool import Requests, SteadyPool
from moetool.simulation.memory.steps.event_table import EventTable, Numbers
from moetool.simulation.memory.steps.unrolled_loops import Placement
from moetool.simulation.memory.timeline import Origin

# Blocks of 0 bytes are in none.
_NO_POOL = -1


class ReplayedSteps(NamedTuple):
    """Memory that several steps take.

    Attributes:
        changes: For each event, by how much the allocated bytes grow.
        reserved_bytes: The memory reserved after each step.
    """

    changes: Numbers
    reserved_bytes: Sequence[int]


def replay_steps(
    events: EventTable,
    starts: Sequence[int],
    *,
    allocator: CachingAllocator,
    origins: Sequence[Origin],
    is_reserve_followed: bool,
    placement: Placement | None = None,
) -> ReplayedSteps:
    """Return what all steps of a generation take, the prompt's included.

    Args:
        events: The events of all steps.
        starts: The number of events before each step.
        allocator: The allocator before the first step, on a device that never runs full. Afterwards,
            only its reserved bytes are right.
        origins: The places where blocks are born.
        is_reserve_followed: Whether the reserved bytes are needed. Without them, blocks of pools that
            hand out what was asked for are not placed.
        placement: Receives the places of the blocks, none of which has a number below 0; 0 for those
            that are not placed.
    """
    pools = {
        index: SteadyPool(allocator, pool)
        for index, pool in enumerate(allocator.pools)
        if is_reserve_followed or not pool.is_exact
    }
    blocks = _Blocks(events, origins=origins)
    changes = blocks.count_needed_changes()
    reserved_bytes: list[int] = []
    for start, end in pairwise((*starts, len(events))):
        pool_of_event = blocks.pools[blocks.of_event[start:end]]
        for index, pool in pools.items():
            places = start + np.flatnonzero(pool_of_event == index)
            if len(places):
                outcome = pool.run(blocks.describe(places, start=start))
                blocks.place(places, outcome.addresses)
                changes[places] = outcome.changes
        reserved_bytes.append(allocator.reserved_bytes)
    if placement is not None:
        births = events.num_bytes >= 0
        placement.addresses[:] = blocks.addresses
        placement.num_bytes[events.blocks[births]] = changes[births]
    return ReplayedSteps(changes, reserved_bytes)


class _Blocks:
    """The blocks of a sequence of events.

    Attributes:
        of_event: For each event, the index of its block.
        pools: For each block, the index of its pool.
        addresses: For each block, its address; 0 before it is placed.
    """

    def __init__(self, events: EventTable, *, origins: Sequence[Origin]) -> None:
        # A device's own workspaces have numbers below 0.
        lowest = min(0, int(events.blocks.min()))
        num_blocks = 1 + int(events.blocks.max()) - lowest
        self.of_event = events.blocks - lowest
        self.pools = np.full(num_blocks, _NO_POOL)
        self.addresses = np.zeros(num_blocks, np.int64)
        self._are_births: NDArray[np.bool_] = events.num_bytes >= 0
        self._needed_bytes = np.where(self._are_births, round_up(events.num_bytes), 0)
        births = np.flatnonzero(self._are_births)
        are_on_side = np.array([origin.is_on_side for origin in origins])
        needed_bytes = self._needed_bytes[births]
        self.pools[self.of_event[births]] = np.where(
            needed_bytes > 0,
            choose_pool(needed_bytes, is_on_side=are_on_side[events.origins[births]]),
            _NO_POOL,
        )
        # The event of each block's birth, and its number among the births of the pool in its step.
        self._born_at = np.full(num_blocks, -1)
        self._born_at[self.of_event[births]] = births
        self._numbers = np.zeros(num_blocks, np.int64)

    def count_needed_changes(self) -> Numbers:
        """Return by how much each event lets the allocated bytes grow if no block is larger than needed."""
        needed_bytes: Numbers = self._needed_bytes[self._born_at[self.of_event]]
        changes: Numbers = np.where(self._are_births, needed_bytes, -needed_bytes)
        return changes

    def describe(self, places: Numbers, *, start: int) -> Requests:
        """Return some events of a step as requests to a pool.

        Args:
            places: The indices of the events.
            start: The number of events before the step.
        """
        blocks, are_births = self.of_event[places], self._are_births[places]
        taken = blocks[are_births]
        self._numbers[taken] = np.arange(len(taken))
        is_own = self._born_at[blocks] >= start
        freed = np.where(is_own, -1 - self._numbers[blocks], self.addresses[blocks])
        return Requests(self._needed_bytes[places], np.where(are_births, 0, freed))

    def place(self, places: Numbers, addresses: Numbers) -> None:
        """Set the addresses of the blocks that are born in some events."""
        blocks = self.of_event[places]
        self.addresses[blocks[self._are_births[places]]] = addresses
