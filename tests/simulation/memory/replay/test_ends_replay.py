"""Generations replayed by their ends, within limits and without."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.replay.ends_replay import EndsReplay
from moetool.simulation.memory.timeline import Timeline
from tests.simulation.memory.memory_runs import make_timeline

MIB = 2**20
# A block's size, and whether it lives on.
BLOCKS = st.lists(
    st.tuples(st.sampled_from([500, MIB, 3 * MIB, 15 * MIB, 40 * MIB]), st.booleans()),
    min_size=1,
    max_size=6,
)


def write_end(prompt: list[tuple[int, bool]], step: list[tuple[int, bool]]) -> Timeline:
    """Return a prompt and a step."""
    events: list[tuple[int, int]] = []
    ends: list[int] = []
    for call in (prompt, step):
        for num_bytes, lives_on in call:
            block = len(events)
            events.append((block, num_bytes))
            if not lives_on:
                events.append((block, -1))
        ends.append(len(events))
    return make_timeline(events, call_ends=ends, cache=[{}, {}])


ENDS = st.builds(write_end, BLOCKS, BLOCKS)


def complete(replay: EndsReplay, capacity_bytes: int) -> bool:
    try:
        replay(capacity_bytes)
    except DeviceFullError:
        return False
    return True


@given(ENDS, st.lists(ENDS, max_size=2), st.integers(30, 150))
def test_the_room_is_the_one_that_replays_show(
    start: Timeline, others: list[Timeline], capacity_mib: int
) -> None:
    replay = EndsReplay(start, others, [1000, 30 * MIB])
    capacity_bytes = capacity_mib * MIB
    needed_bytes = replay(None).peak_reserved_bytes
    room = replay.find_room(capacity_bytes)
    assert room.fits == (needed_bytes <= capacity_bytes or complete(replay, capacity_bytes))
    if needed_bytes <= capacity_bytes or room.needed_bytes is not None:
        assert room.needed_bytes == needed_bytes
    if room.fits:
        limit = None if needed_bytes <= capacity_bytes else capacity_bytes
        assert room.allocated_bytes == replay(limit).peak_allocated_bytes


def test_what_a_run_needs_is_left_open_once_it_needs_more_than_there_is() -> None:
    end = write_end([(40 * MIB, False), (60 * MIB, False)], [(500, True)])
    replay = EndsReplay(end, [end], [30 * MIB])
    assert replay.find_room(131 * MIB)[:2] == (True, None)
    assert replay.find_room(132 * MIB)[:2] == (True, 132 * MIB)
    assert replay.find_room(89 * MIB) == (False, None, None)
    assert replay.weights_bytes == 30 * MIB
