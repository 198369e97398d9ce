"""Steps replayed pool by pool, compared with the same steps replayed event by event."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator, DeviceFullError
from moetool.simulation.memory.allocator.pools import Pool
from moetool.simulation.memory.allocator.steady_pool import Requests, SteadyPool
from moetool.simulation.memory.allocator.weights import allocate_weights
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.timeline import Call, Event, Origin, Timeline

MIB = 2**20
# No run needs as much, and a limit has every event replayed.
ENDLESS = 2**62
# One of several devices has a workspace with a number below 0.
WORKSPACE = -2
ORIGINS = [Origin("", "", "here"), Origin("", "", "on the side", is_on_side=True)]


class Item(NamedTuple):
    """A block that each step makes.

    Attributes:
        num_bytes: Its size in the first step.
        growth: By how much it is larger in each later step.
        num_steps: The number of steps until it dies; 0 for its own step.
        is_kept: Whether it is in the cache.
    """

    num_bytes: int
    growth: int
    num_steps: int
    is_kept: bool
    origin: int


ITEMS = st.builds(
    Item,
    num_bytes=st.sampled_from([0, 8, 500, 5000, MIB, MIB + 1, 3 * MIB, 15 * MIB]),
    growth=st.sampled_from([0, 0, 0, 8, 4096]),
    num_steps=st.integers(0, 3),
    is_kept=st.booleans(),
    origin=st.integers(0, 1),
)


def write_generation(items: list[Item], *, num_steps: int) -> Timeline:
    """Return a generation whose prompt and steps all make the same blocks, except for growth."""
    events = [Event(WORKSPACE, 8 * MIB, 0)]
    calls: list[Call] = []
    dying: dict[int, list[int]] = {}
    number = 0
    for step in range(num_steps):
        first, kept = len(events), set[int]()
        for item in items:
            events.append(Event(number, item.num_bytes + step * item.growth, item.origin))
            dying.setdefault(step + item.num_steps, []).append(number)
            if item.is_kept:
                kept.add(number)
            number += 1
        calls.append(Call(first, len(events), frozenset(kept), 1))
        events += [Event(block, -1, 0) for block in dying.pop(step, [])]
    return Timeline(tuple(events), ORIGINS, tuple(calls), workspace_block=WORKSPACE)


@given(st.lists(ITEMS, min_size=1, max_size=6), st.integers(8, 30))
def test_steps_take_what_their_events_take_one_by_one(items: list[Item], num_steps: int) -> None:
    timeline = write_generation(items, num_steps=num_steps)
    weight_bytes = [1000, 30 * MIB, 3 * MIB]
    by_pool = replay_timeline(timeline, weight_bytes=weight_bytes)
    one_by_one = replay_timeline(timeline, weight_bytes=weight_bytes, capacity_bytes=ENDLESS)
    assert by_pool == one_by_one
    counted = replay_timeline(timeline, weight_bytes=weight_bytes, is_reserve_followed=False)
    assert (counted.prefill, counted.decode) == (by_pool.prefill, by_pool.decode)
    assert counted.peak_allocated_bytes == by_pool.peak_allocated_bytes
    assert counted.peak_reserved_bytes <= by_pool.peak_reserved_bytes


@given(st.lists(ITEMS, min_size=1, max_size=6), st.integers(2, 8), st.integers(32 * MIB, 150 * MIB))
def test_a_limited_run_takes_what_the_allocator_gives_it(
    items: list[Item], num_steps: int, capacity_bytes: int
) -> None:
    timeline = write_generation(items, num_steps=num_steps)
    allocator = allocate_weights([1000, 3 * MIB], capacity_bytes=capacity_bytes)
    handles: dict[int, int] = {}
    try:
        for event in timeline.events:
            if event.num_bytes < 0:
                allocator.free(handles.pop(event.block))
            else:
                handles[event.block] = allocator.allocate(
                    event.num_bytes, is_on_side=ORIGINS[event.origin].is_on_side
                )
    except DeviceFullError:
        with pytest.raises(DeviceFullError):
            replay_timeline(timeline, weight_bytes=[1000, 3 * MIB], capacity_bytes=capacity_bytes)
        return
    profile = replay_timeline(timeline, weight_bytes=[1000, 3 * MIB], capacity_bytes=capacity_bytes)
    assert profile.peak_allocated_bytes == allocator.peak_allocated_bytes
    assert profile.peak_reserved_bytes == allocator.peak_reserved_bytes


class CountedPool(Pool):
    """A pool that counts the blocks that are asked for."""

    num_asked = 0

    def take(self, needed_bytes: int) -> int | None:
        self.num_asked += 1
        return super().take(needed_bytes)


def test_requests_that_come_again_in_the_same_state_are_not_carried_out() -> None:
    """Two blocks take turns: each is taken while the other is still in use."""
    pool = CountedPool(smallest_rest_bytes=512)
    steady = SteadyPool(CachingAllocator(), pool)

    def move(address: int) -> int:
        outcome = steady.run(Requests(np.array([1024, 0]), np.array([0, address])))
        assert outcome.changes.tolist() == [1024, -1024]
        return int(outcome.addresses[0])

    start = int(steady.run(Requests(np.array([1024]), np.array([0]))).addresses[0])
    addresses = [start]
    for _ in range(4):
        addresses.append(move(addresses[-1]))
    num_asked = pool.num_asked
    for _ in range(20):
        addresses.append(move(addresses[-1]))
    assert pool.num_asked == num_asked
    assert addresses[1:] == [start + 1024, start] * 12
    # What was skipped is made up for: the block in use is the one that it would be.
    larger = steady.run(Requests(np.array([2048, 0]), np.array([0, addresses[-1]])))
    assert larger.addresses.tolist() == [start + 1024]
    assert pool.num_asked > num_asked


def test_blocks_on_both_sides_of_one_that_is_never_freed_stay_apart() -> None:
    pool = Pool(smallest_rest_bytes=512)
    pool.add_segment(4096)
    weights = pool.take(1024)
    assert weights is not None
    # Its end is where the weights begin, and the rest of their segment lies behind them.
    pool.add_segment(4096)
    lower = pool.lowest_address
    steady = SteadyPool(CachingAllocator(), pool)

    def take(num_bytes: int) -> int:
        return int(steady.run(Requests(np.array([num_bytes, 0]), np.array([0, -1]))).addresses[0])

    # The last of these are not carried out, so the pool is built anew afterwards.
    assert {take(4096) for _ in range(6)} == {lower}
    assert take(3584) == take(4096) == lower
    # Free are 4096 bytes before the weights and 3072 behind them.
    assert take(6144) < lower
