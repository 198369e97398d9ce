"""Replays of a few iterations of a loop, compared with replays of all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moetool.simulation.loops.loop import Loop
from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.replay.memory_replay import MemoryProfile, replay_timeline
from moetool.simulation.memory.steps.unrolled_loops import Placement, unroll, unroll_whole
from moetool.simulation.memory.timeline import Call, Event, Origin, Timeline

MIB = 2**20
NUM_LEFT_OUT = 500
# Sizes in the pools for small and large blocks: what an iteration needs, and what it leaves behind.
SIZES = [(3 * MIB, 2 * MIB), (400_000, 300_000), (3 * MIB, 300_000), (30 * MIB, 1_500_000)]


def make_timeline(needed_bytes: int, left_bytes: int, *, is_steady: bool = True) -> Timeline:
    """Return a run of a loop, each iteration of which replaces what the one before left behind.

    Args:
        is_steady: Whether that is so; else what iterations left behind is never freed.
    """
    events = [Event(0, left_bytes, 0)]
    loops: list[Loop] = []
    for number in range(4):
        first = 1 + 2 * number
        if number == 3:
            loops.append(Loop(len(events), 4 if is_steady else 3, first - 2, 2, NUM_LEFT_OUT))
        events += [
            Event(first, needed_bytes, 0),
            Event(first + 1, left_bytes, 0),
            Event(first, -1, 0),
        ]
        if is_steady:
            events.append(Event(first - 1, -1, 0))
    last = 8
    events.append(Event(9, 5 * needed_bytes, 0))
    call = Call(0, len(events), frozenset({last}), left_bytes)
    return Timeline(tuple(events), [Origin("", "", "mm")], (call,), None, loops=tuple(loops))


def replay(timeline: Timeline, capacity_bytes: int | None) -> MemoryProfile | None:
    """Return the profile of a run; None if the device is full."""
    try:
        return replay_timeline(timeline, weight_bytes=[MIB] * 3, capacity_bytes=capacity_bytes)
    except DeviceFullError:
        return None


@pytest.mark.parametrize("is_steady", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_few_iterations_take_what_all_of_them_take(
    sizes: tuple[int, int], is_steady: bool
) -> None:
    timeline = make_timeline(*sizes, is_steady=is_steady)
    whole = unroll_whole(timeline)
    assert len(whole.events) == len(timeline.events) + NUM_LEFT_OUT * timeline.loops[0].num_events
    most = replay(whole, None)
    assert most is not None
    assert replay(timeline, None) == most
    limits = [most.peak_reserved_bytes - more * MIB for more in (-40, 0, 1, 5, 20, 80, 200, 1000)]
    profiles = [replay(whole, limit) for limit in limits]
    assert None in profiles
    assert [replay(timeline, limit) for limit in limits] == profiles


def test_most_iterations_of_a_steady_loop_are_not_replayed() -> None:
    unrolled = unroll(make_timeline(*SIZES[0]))
    assert len(unrolled.timeline.events) < 30 * 4


def test_a_short_loop_is_replayed_whole() -> None:
    timeline = make_timeline(*SIZES[0])
    short = replace(timeline, loops=(replace(timeline.loops[0], num_left_out=20),))
    unrolled = unroll(short)
    assert not unrolled.stretches
    assert list(unrolled.timeline.events) == list(unroll_whole(short).events)


def test_an_iteration_that_is_placed_elsewhere_is_noticed() -> None:
    unrolled = unroll(make_timeline(*SIZES[0]))
    placement = Placement.of(unrolled.timeline)
    placement.addresses[:] = np.arange(len(placement.addresses)) % 4
    assert unrolled.is_like_whole(placement)
    end = unrolled.stretches[0].end_block
    placement.num_bytes[end - 1] += 512
    assert not unrolled.is_like_whole(placement)
    placement.num_bytes[end - 1] -= 512
    placement.addresses[end - 2] += 1
    assert not unrolled.is_like_whole(placement)
