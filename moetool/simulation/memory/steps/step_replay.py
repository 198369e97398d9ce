"""Replay the steps of a long generation, most of which do the same to most of the memory.

Each of torch's pools depends on no other as long as the device has room. The pool for small blocks
gets the same requests in most steps, and the one for large blocks gets few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator
from moetool.simulation.memory.allocator.pools import Block, choose_pool, round_up
from moetool.simulation.memory.allocator.steady_pool import Requests, SteadyPool
from moetool.simulation.memory.steps.event_table import EventTable, Numbers
from moetool.simulation.memory.timeline import Origin

# Blocks of 0 bytes are in none.
_NO_POOL = -1


def replay_steps(
    events: EventTable,
    starts: Sequence[int],
    *,
    allocator: CachingAllocator,
    blocks: Mapping[int, Block],
    origins: Sequence[Origin],
) -> Numbers:
    """Return by how much each event of several steps lets the allocated bytes grow.

    Args:
        events: The events of all steps.
        starts: The number of events before each step.
        allocator: The allocator before the first step, on a device that never runs full. Afterwards,
            only its reserved bytes are right.
        blocks: The allocator's blocks in use, by their number in events.
        origins: The places where blocks are born.
    """
    pools = [
        SteadyPool(allocator, pool, [block for block in blocks.values() if block.pool is pool])
        for pool in allocator.pools
    ]
    known = _Blocks(events, allocator=allocator, blocks=blocks, origins=origins)
    pool_of_event = known.pools[known.of_event]
    changes = np.zeros(len(events), np.int64)
    for start, end in pairwise((*starts, len(events))):
        for index, pool in enumerate(pools):
            places = start + np.flatnonzero(pool_of_event[start:end] == index)
            if len(places):
                outcome = pool.run(known.describe(places, start=start))
                known.place(places, outcome.addresses)
                changes[places] = outcome.changes
    return changes


class _Blocks:
    """The blocks of a sequence of events.

    Attributes:
        of_event: For each event, the index of its block.
        pools: For each block, the index of its pool.
    """

    def __init__(
        self,
        events: EventTable,
        *,
        allocator: CachingAllocator,
        blocks: Mapping[int, Block],
        origins: Sequence[Origin],
    ) -> None:
        # A device's own workspaces have numbers below 0.
        lowest = min((0, *blocks, int(events.blocks.min())))
        num_blocks = 1 + max((*blocks, int(events.blocks.max()))) - lowest
        self.of_event = events.blocks - lowest
        self.pools = np.full(num_blocks, _NO_POOL)
        self._addresses = np.zeros(num_blocks, np.int64)
        for number, block in blocks.items():
            self.pools[number - lowest] = allocator.pools.index(block.pool)
            self._addresses[number - lowest] = block.address
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
        freed = np.where(is_own, -1 - self._numbers[blocks], self._addresses[blocks])
        return Requests(self._needed_bytes[places], np.where(are_births, 0, freed))

    def place(self, places: Numbers, addresses: Numbers) -> None:
        """Set the addresses of the blocks that are born in some events."""
        blocks = self.of_event[places]
        self._addresses[blocks[self._are_births[places]]] = addresses
