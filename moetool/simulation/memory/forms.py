"""Forms of timelines: what remains of them without sizes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from moetool.simulation.memory.expected_sizes import expect_sort_sizes
from moetool.simulation.memory.steps.event_table import EventTable, Numbers
from moetool.simulation.memory.timeline import Timeline

# A size that is neither that of a block nor of a death.
_UNKNOWN = -2
# The largest block that holds a single number.
_NUMBER_BYTES = 8


def find_sorts(timeline: Timeline) -> list[int]:
    """Return the events in which sorts take temporary memory, and those of their results."""
    events = EventTable.of(timeline.events)
    sorts = [at for at, origin in enumerate(timeline.origins) if origin.operation == "sort"]
    are_births = events.num_bytes >= 0
    found: list[int] = np.flatnonzero(np.isin(events.origins, sorts) & are_births).tolist()
    return found


def are_alike(one: Timeline, other: Timeline) -> bool:
    """Return whether two timelines of the same model differ in nothing but sizes."""
    events, others = EventTable.of(one.events), EventTable.of(other.events)
    return (
        (one.workspace_block, one.lt_workspace_block)
        == (other.workspace_block, other.lt_workspace_block)
        and [(call.first_event, call.end_event, call.cache_blocks) for call in one.calls]
        == [(call.first_event, call.end_event, call.cache_blocks) for call in other.calls]
        and [replace(loop, num_left_out=0) for loop in one.loops]
        == [replace(loop, num_left_out=0) for loop in other.loops]
        and np.array_equal(events.blocks, others.blocks)
        and np.array_equal(events.origins, others.origins)
        and np.array_equal(events.num_bytes >= 0, others.num_bytes >= 0)
    )


def list_sizes(timeline: Timeline) -> Numbers:
    """Return the sizes of all events, of each call's cache, and the iterations left out."""
    caches = [(call.cache_bytes, call.host_cache_bytes) for call in timeline.calls]
    left_out = np.array([loop.num_left_out for loop in timeline.loops], np.int64)
    return np.concatenate([EventTable.of(timeline.events).num_bytes, np.ravel(caches), left_out])


def resize(timeline: Timeline, sizes: Numbers) -> Timeline:
    """Return a timeline with other sizes, in the order of `list_sizes`."""
    events = EventTable.of(timeline.events)
    num_sizes = len(events) + 2 * len(timeline.calls)
    caches = sizes[len(events) : num_sizes].reshape(-1, 2).tolist()
    loops = tuple(
        replace(loop, num_left_out=number)
        for loop, number in zip(timeline.loops, sizes[num_sizes:].tolist(), strict=True)
    )
    calls = tuple(
        replace(call, cache_bytes=cache_bytes, host_cache_bytes=host_bytes)
        for call, (cache_bytes, host_bytes) in zip(timeline.calls, caches, strict=True)
    )
    sized = EventTable(events.blocks, sizes[: len(events)], events.origins)
    return replace(timeline, events=sized, calls=calls, loops=loops)


def take_form(timeline: Timeline, other: Timeline, *, share: Fraction) -> Timeline | None:
    """Return a timeline as it would be in the form of another, which has more blocks.

    The additional ones are taken to be of sizes in proportion to the sequences, except those of a
    single number and the temporary memory of sorts. None if the timeline has other blocks, or sizes
    between whole bytes.

    Args:
        timeline: A run with fewer sequences.
        other: A run of the same model with more, whose places are numbered alike.
        share: The timeline's number of sequences, as a share of the other's.
    """
    if not _is_within(timeline, other):
        return None
    births = _list_births(timeline)
    sizes = list_sizes(other)
    sorts = set(find_sorts(other))
    events = EventTable.of(other.events)
    next_birth = 0
    for place in np.flatnonzero(events.num_bytes >= 0).tolist():
        origin, num_bytes = int(events.origins[place]), int(events.num_bytes[place])
        if next_birth < len(births) and births[next_birth][0] == origin:
            sizes[place] = births[next_birth][1]
            next_birth += 1
        elif num_bytes > _NUMBER_BYTES:
            size = None
            if place in sorts:
                indices, own_indices = int(events.num_bytes[place - 1]), int(sizes[place - 1])
                size = expect_sort_sizes([indices], [num_bytes], own_indices)
            if size is None:
                size, rest = divmod(num_bytes * share.numerator, share.denominator)
                if rest:
                    return None
            sizes[place] = size
    if next_birth < len(births):
        return None
    sizes[len(events) :] = list_sizes(timeline)[len(timeline.events) :]
    return resize(other, sizes)


def follow_both(
    corner: Timeline, longer: Timeline, wider: Timeline, *, share: Fraction
) -> Timeline | None:
    """Return a timeline with the prompt of one run and the sequences of another.

    A size that grows with one of both is as in the run where that is larger. One that grows with both
    is taken to have a part in proportion to the sequences, and one that is the same for all prompts.
    None if a size does anything else.

    Args:
        corner: A run with fewer tokens than `longer` and fewer sequences than `wider`.
        longer: A run with other prompts.
        wider: A run with more sequences.
        share: The sequences of `corner`, as a share of those of `wider`.
    """
    formed = [take_form(each, wider, share=share) for each in (corner, longer)]
    if formed[0] is None or formed[1] is None:
        return None
    start, more_tokens, more_sequences = map(list_sizes, (formed[0], formed[1], wider))
    num, den = share.numerator, share.denominator
    more, rest = np.divmod((more_tokens - start) * den, num)
    # The part that is the same for all sequences isn't below 0.
    are_lines = (start * den >= more_sequences * num) & (rest == 0)
    both = np.select(
        [start == more_sequences, are_lines], [more_tokens, more_sequences + more], _UNKNOWN
    )
    for place in find_sorts(wider):
        indices = int(more_sequences[place - 1])
        size = expect_sort_sizes([indices], [int(more_sequences[place])], int(both[place - 1]))
        if size is not None:
            both[place] = size
    return None if (both == _UNKNOWN).any() else resize(wider, both)


def _is_within(timeline: Timeline, other: Timeline) -> bool:
    """Return whether two timelines have as many calls, and loops of the same kind."""
    loops, others = (
        [(loop.num_events, loop.num_blocks) for loop in each.loops] for each in (timeline, other)
    )
    return len(timeline.calls) == len(other.calls) and loops == others


def _list_births(timeline: Timeline) -> list[tuple[int, int]]:
    """Return the place and the size of each block in the order of their births."""
    events = EventTable.of(timeline.events)
    are_births = events.num_bytes >= 0
    columns = events.origins[are_births].tolist(), events.num_bytes[are_births].tolist()
    return list(zip(*columns, strict=True))
