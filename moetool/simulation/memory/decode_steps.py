"""Derive the steps of a long generation from a few that ran, which differ only in sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from moetool.simulation.memory.timeline import Call, Event, Timeline


class StepEvent(NamedTuple):
    """The birth or death of a block during a step, without block numbers.

    Attributes:
        steps_ago: Number of steps since the block was born.
        number: The block's number among those of its step.
        num_bytes: The bytes requested; -1 for its death.
        origin: Index of its birthplace in the timeline's origins.
    """

    steps_ago: int
    number: int
    num_bytes: int
    origin: int


@dataclass(frozen=True)
class Step:
    """The births and deaths of one decoding step, from its call to the next one.

    Attributes:
        cache_numbers: Numbers of its blocks that the cache holds after the call.
        cache_bytes: Size of the whole cache after the call.
        num_events_of_call: Number of events until the call ends.
        host_cache_bytes: Size of the cache's tensors in the host's memory.
    """

    events: tuple[StepEvent, ...]
    cache_numbers: frozenset[int]
    cache_bytes: int
    num_events_of_call: int
    host_cache_bytes: int = 0

    def has_form_of(self, other: Step) -> bool:
        """Return whether two steps differ only in sizes and names."""
        return (
            len(self.events) == len(other.events)
            and self.cache_numbers == other.cache_numbers
            and self.num_events_of_call == other.num_events_of_call
            and all(
                a.steps_ago == b.steps_ago
                and a.number == b.number
                and (a.num_bytes < 0) == (b.num_bytes < 0)
                for a, b in zip(self.events, other.events, strict=True)
            )
        )


def take_step(timeline: Timeline, number: int) -> Step | None:
    """Return one of a timeline's steps; None if it frees a block that is older than the first step.

    Args:
        timeline: A generation.
        number: Index of its call. The prompt's is 0, and the last call isn't a whole step.
    """
    born = _number_births(timeline)
    start, end = (timeline.calls[n].first_event for n in (number, number + 1))
    events = []
    for block, num_bytes, origin in timeline.events[start:end]:
        step, index = born[block]
        if step < 1:
            return None
        events.append(StepEvent(number - step, index, num_bytes, origin))
    call = timeline.calls[number]
    own = {born[block][1] for block in call.cache_blocks if born[block][0] == number}
    return Step(
        tuple(events),
        frozenset(own),
        call.cache_bytes,
        call.end_event - start,
        call.host_cache_bytes,
    )


def find_step_between(first: Step, last: Step, *, share: Fraction) -> Step | None:
    """Return the step at a fraction of the way between two; None if their forms differ.

    Sizes are interpolated linearly. None also if a size is not a whole number of bytes.
    """
    if not first.has_form_of(last):
        return None
    events = list(first.events)
    for index, (a, b) in enumerate(zip(first.events, last.events, strict=True)):
        if a.num_bytes != b.num_bytes:
            num_bytes = _find_between(a.num_bytes, b.num_bytes, share=share)
            if num_bytes is None:
                return None
            events[index] = a._replace(num_bytes=num_bytes)
    cache_bytes = _find_between(first.cache_bytes, last.cache_bytes, share=share)
    host_bytes = _find_between(first.host_cache_bytes, last.host_cache_bytes, share=share)
    if cache_bytes is None or host_bytes is None:
        return None
    return Step(
        tuple(events), first.cache_numbers, cache_bytes, first.num_events_of_call, host_bytes
    )


def _find_between(first: int, last: int, *, share: Fraction) -> int | None:
    # Fractions themselves take too long here.
    more, rest = divmod((last - first) * share.numerator, share.denominator)
    return None if rest else first + more


def continue_timeline(
    timeline: Timeline, *, num_calls: int, steps: Sequence[Callable[[], Step]]
) -> Timeline:
    """Return a timeline that continues with other steps after its first calls.

    Args:
        timeline: A generation.
        num_calls: Number of its calls to keep.
        steps: Functions that return the steps after them.
    """
    born = _number_births(timeline)
    start = timeline.calls[num_calls].first_event
    events = list(timeline.events[:start])
    calls = list(timeline.calls[:num_calls])
    # The blocks that each step made.
    made: list[list[int]] = [[] for _ in range(num_calls)]
    for block, (number_of_step, _) in born.items():
        if number_of_step < num_calls:
            made[number_of_step].append(block)
    next_block = 1 + max(born, default=-1)
    for find in steps:
        step = find()
        first_event, own = len(events), list[int]()
        made.append(own)
        for steps_ago, number, num_bytes, origin in step.events:
            if num_bytes >= 0:
                own.append(next_block)
                next_block += 1
            events.append(Event(made[-1 - steps_ago][number], num_bytes, origin))
        calls.append(
            Call(
                first_event=first_event,
                end_event=first_event + step.num_events_of_call,
                cache_blocks=frozenset(own[number] for number in step.cache_numbers),
                cache_bytes=step.cache_bytes,
                host_cache_bytes=step.host_cache_bytes,
            )
        )
    return replace(timeline, events=tuple(events), calls=tuple(calls))


def _number_births(timeline: Timeline) -> dict[int, tuple[int, int]]:
    """Return the step of each block's birth, and the block's number in that step."""
    born: dict[int, tuple[int, int]] = {}
    starts = [call.first_event for call in timeline.calls[1:]]
    step = number = 0
    for index, event in enumerate(timeline.events):
        while step < len(starts) and index >= starts[step]:
            step, number = step + 1, 0
        if event.num_bytes >= 0:
            born[event.block] = (step, number)
            number += 1
    return born
