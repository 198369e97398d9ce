"""Write out iterations of loops that were left out of a timeline, as many as a replay needs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moetool.simulation.loops.loop import Loop
from moetool.simulation.memory.steps.event_table import EventTable, Numbers
from moetool.simulation.memory.timeline import Timeline

# An allocator places the blocks of a loop in the same places every few iterations, after the first
# ones: every two or three in one of its pools, and thus every six in two of them.
_PERIODS = (1, 2, 3, 4, 6)
_LONGEST_PERIOD = max(_PERIODS)
# A multiple of this number is left out, and so a multiple of each period.
_NUM_LEFT_OUT_AT_ONCE = math.lcm(*_PERIODS)
_NUM_FIRST = 2
# The largest share of all events that is written out: to replay a larger one in vain takes longer than
# the rest.
_LARGEST_SHARE = 0.75


@dataclass(frozen=True)
class Placement:
    """The places of a timeline's blocks in an allocator's memory.

    Attributes:
        addresses: The address of each block; -1 for those that the replay did not come to.
        num_bytes: The size that the allocator gave each block.
    """

    addresses: Numbers
    num_bytes: Numbers

    @classmethod
    def of(cls, timeline: Timeline) -> Placement:
        """Return places for the blocks of a timeline, none of which is known yet."""
        num_blocks = 1 + int(EventTable.of(timeline.events).blocks.max(initial=-1))
        return cls(np.full(num_blocks, -1), np.zeros(num_blocks, np.int64))


@dataclass(frozen=True)
class Stretch:
    """Iterations of a loop that were written out, after which others are still left out.

    Attributes:
        end_block: The number of blocks until their end.
        num_blocks: The number of blocks of each iteration.
    """

    end_block: int
    num_blocks: int


@dataclass(frozen=True)
class UnrolledTimeline:
    """A timeline with as many iterations of its loops as a replay needs.

    Attributes:
        timeline: The timeline, of which nothing is left out except what follows `stretches`.
        stretches: The loops of which whole periods are still left out.
    """

    timeline: Timeline
    stretches: Sequence[Stretch] = ()

    def is_like_whole(self, placement: Placement) -> bool:
        """Return whether a replay shows that what is left out changes nothing.

        The state of an allocator consists of its segments, and of the places of blocks in them. If
        the last few iterations take blocks of the same sizes at the same addresses as those before
        them, then no segment was new in them, and the state after them is the state before them:
        all that follow do the same.
        """
        for stretch in self.stretches:
            start = stretch.end_block - 2 * _LONGEST_PERIOD * stretch.num_blocks
            # Of each iteration.  # (2 * _LONGEST_PERIOD, num_blocks)
            addresses, num_bytes = (
                each[start : stretch.end_block].reshape(-1, stretch.num_blocks)
                for each in (placement.addresses, placement.num_bytes)
            )
            if (addresses < 0).any():
                # The device was full before, in what every such run begins with.
                return True
            if not any(
                np.array_equal(each[-period:], each[-2 * period : -period])
                for period in _PERIODS
                for each in [np.hstack([addresses, num_bytes])]
            ):
                return False
        return True


def unroll(timeline: Timeline) -> UnrolledTimeline:
    """Return a timeline with enough iterations for a replay to show what the others do.

    Whole periods are left out; a replay has to confirm that they change nothing. Nothing is left out
    where that is little.
    """
    numbers = [_choose_number(loop) for loop in timeline.loops]
    in_full = [loop.num_left_out for loop in timeline.loops]
    if _count_events(timeline, numbers) > _LARGEST_SHARE * _count_events(timeline, in_full):
        numbers = in_full
    stretches: list[Stretch] = []
    num_before = 0
    for loop, number in zip(timeline.loops, numbers, strict=True):
        num_before += number * loop.num_blocks
        if number < loop.num_left_out:
            end_block = loop.first_block + loop.num_blocks + num_before
            stretches.append(Stretch(end_block, loop.num_blocks))
    return UnrolledTimeline(_write_out(timeline, numbers), stretches)


def unroll_whole(timeline: Timeline) -> Timeline:
    """Return a timeline with all iterations of its loops."""
    return _write_out(timeline, [loop.num_left_out for loop in timeline.loops])


def _count_events(timeline: Timeline, numbers: Sequence[int]) -> int:
    """Return the number of events if some of the iterations left out of each loop are written out."""
    return len(timeline.events) + sum(
        number * loop.num_events for number, loop in zip(numbers, timeline.loops, strict=True)
    )


def _choose_number(loop: Loop) -> int:
    least = _NUM_FIRST + 2 * _LONGEST_PERIOD
    if loop.num_left_out <= least:
        return loop.num_left_out
    return least + (loop.num_left_out - least) % _NUM_LEFT_OUT_AT_ONCE


def _write_out(timeline: Timeline, numbers: Sequence[int]) -> Timeline:
    """Return a timeline with some of the iterations that were left out of each loop, and no others."""
    if not timeline.loops:
        return timeline
    events = EventTable.of(timeline.events)
    tables: list[EventTable] = []
    renumber = _Renumbering()
    start = 0
    # For each loop, the number of events before the iterations that are written out.
    ends = np.array([loop.end_event for loop in timeline.loops])
    for loop, number in zip(timeline.loops, numbers, strict=True):
        tables.append(renumber(events[start : loop.end_event]))
        start = loop.end_event
        iteration = renumber(events[start - loop.num_events : start])
        first = renumber.find(loop.first_block)
        # It also frees blocks of the iteration before it.
        is_moving = iteration.blocks >= first - loop.num_blocks
        # Of each iteration.  # (number, num_events)
        moves = loop.num_blocks * np.outer(np.arange(1, number + 1), is_moving)
        blocks = (iteration.blocks + moves).ravel()
        others = (np.tile(column, number) for column in iteration.columns[1:])
        tables.append(EventTable(blocks, *others))
        renumber.move(loop.first_block, number * loop.num_blocks)
    tables.append(renumber(events[start:]))
    grown = np.array(
        [number * loop.num_events for loop, number in zip(timeline.loops, numbers, strict=True)]
    )

    def move(position: int) -> int:
        return position + int(grown[ends <= position].sum())

    calls = tuple(
        replace(
            call,
            first_event=move(call.first_event),
            end_event=move(call.end_event),
            cache_blocks=frozenset(map(renumber.find, call.cache_blocks)),
        )
        for call in timeline.calls
    )
    return replace(
        timeline,
        events=EventTable.join(tables),
        calls=calls,
        workspace_block=_apply(renumber.find, timeline.workspace_block),
        lt_workspace_block=_apply(renumber.find, timeline.lt_workspace_block),
        loops=(),
    )


def _apply(function: Callable[[int], int], block: int | None) -> int | None:
    return None if block is None else function(block)


class _Renumbering:
    """The numbers of blocks after iterations were written out before them."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._moves: list[int] = [0]

    def __call__(self, events: EventTable) -> EventTable:
        """Return events with their blocks' new numbers."""
        moves = np.cumsum(self._moves)[np.searchsorted(self._firsts, events.blocks, side="right")]
        return EventTable(events.blocks + moves, events.num_bytes, events.origins)

    def find(self, block: int) -> int:
        """Return a block's new number."""
        return block + sum(self._moves[: 1 + bisect_right(self._firsts, block)])

    def move(self, first_block: int, num_more: int) -> None:
        """Add to the numbers from a block on, as they are before any is moved."""
        self._firsts.append(first_block)
        self._moves.append(num_more)
