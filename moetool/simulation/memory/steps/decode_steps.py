"""Derive the steps of a long generation from a few that ran, which differ only in sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.steps.event_table import EventTable, Numbers
from moetool.simulation.memory.timeline import Call, Timeline


@dataclass(frozen=True, eq=False)
class StepForm:
    """The births and deaths of a decoding step, without their sizes and without block numbers.

    Attributes:
        steps_ago: For each event, the number of steps since its block was born.
        numbers: For each event, the block's number among those of its step.
        are_births: For each event, whether it is a birth.
        cache_numbers: Numbers of its blocks that the cache holds after the call.
        num_events_of_call: Number of events until the call ends.
    """

    steps_ago: Numbers
    numbers: Numbers
    are_births: NDArray[np.bool_]
    cache_numbers: frozenset[int]
    num_events_of_call: int

    def is_like(self, other: StepForm) -> bool:
        """Return whether two steps have the same events, except for sizes and names."""
        return self is other or (
            self.cache_numbers == other.cache_numbers
            and self.num_events_of_call == other.num_events_of_call
            and np.array_equal(self.steps_ago, other.steps_ago)
            and np.array_equal(self.numbers, other.numbers)
            and np.array_equal(self.are_births, other.are_births)
        )

    @cached_property
    def places_by_age(self) -> dict[int, Numbers]:
        """The indices of the events about blocks that were born some number of steps ago."""
        return {
            int(age): np.flatnonzero(self.steps_ago == age) for age in np.unique(self.steps_ago)
        }


@dataclass(frozen=True, eq=False)
class Step:
    """One decoding step, from its call to the next one.

    Attributes:
        form: Its births and deaths.
        num_bytes: For each event, the bytes requested; -1 for a death.
        origins: For each event, the index of its birthplace in the timeline's origins.
        cache_bytes: Size of the whole cache after the call.
        host_cache_bytes: Size of the cache's tensors in the host's memory.
    """

    form: StepForm
    num_bytes: Numbers
    origins: Numbers
    cache_bytes: int
    host_cache_bytes: int = 0

    def is_same_as(self, other: Step) -> bool:
        """Return whether two steps have the same events and sizes."""
        return self.form.is_like(other.form) and np.array_equal(self.num_bytes, other.num_bytes)


def take_step(timeline: Timeline, number: int) -> Step | None:
    """Return one of a timeline's steps; None if it frees a block that is older than the first step.

    Args:
        timeline: A generation.
        number: Index of its call. The prompt's is 0, and the last call isn't a whole step.
    """
    births = _Births.of(timeline)
    start, end = (timeline.calls[n].first_event for n in (number, number + 1))
    events = EventTable.of(timeline.events[start:end])
    steps = births.steps[events.blocks]
    if (steps < 1).any():
        return None
    call = timeline.calls[number]
    in_cache = np.array([*call.cache_blocks], dtype=np.int64)
    own = births.numbers[in_cache[births.steps[in_cache] == number]]
    form = StepForm(
        steps_ago=number - steps,
        numbers=births.numbers[events.blocks],
        are_births=events.num_bytes >= 0,
        cache_numbers=frozenset(own.tolist()),
        num_events_of_call=call.end_event - start,
    )
    return Step(form, events.num_bytes, events.origins, call.cache_bytes, call.host_cache_bytes)


def find_step_between(first: Step, last: Step, *, share: Fraction) -> Step | None:
    """Return the step at a fraction of the way between two; None if their forms differ.

    Sizes are interpolated linearly. None also if a size is not a whole number of bytes.
    """
    if not first.form.is_like(last.form):
        return None
    num_bytes = first.num_bytes.copy()
    for index in np.flatnonzero(first.num_bytes != last.num_bytes).tolist():
        size = _find_between(int(first.num_bytes[index]), int(last.num_bytes[index]), share=share)
        if size is None:
            return None
        num_bytes[index] = size
    cache_bytes = _find_between(first.cache_bytes, last.cache_bytes, share=share)
    host_bytes = _find_between(first.host_cache_bytes, last.host_cache_bytes, share=share)
    if cache_bytes is None or host_bytes is None:
        return None
    return Step(first.form, num_bytes, first.origins, cache_bytes, host_bytes)


def _find_between(first: int, last: int, *, share: Fraction) -> int | None:
    # Fractions themselves take too long here.
    more, rest = divmod((last - first) * share.numerator, share.denominator)
    return None if rest else first + more


def continue_timeline(timeline: Timeline, *, num_calls: int, steps: Iterable[Step]) -> Timeline:
    """Return a timeline that continues with other steps after its first calls.

    Args:
        timeline: A generation.
        num_calls: Number of its calls to keep.
        steps: The steps after them.
    """
    births = _Births.of(timeline)
    start = timeline.calls[num_calls].first_event
    tables = [EventTable.of(timeline.events[:start])]
    calls = list(timeline.calls[:num_calls])
    # The blocks that each step made, by their number.
    made = [births.list_blocks(number) for number in range(num_calls)]
    next_block = len(births.steps)
    for step in steps:
        form = step.form
        num_made = int(form.are_births.sum())
        own = np.arange(next_block, next_block + num_made)
        next_block += num_made
        made.append(own)
        blocks = np.empty_like(form.numbers)
        for age, places in form.places_by_age.items():
            blocks[places] = made[-1 - age][form.numbers[places]]
        tables.append(EventTable(blocks, step.num_bytes, step.origins))
        calls.append(
            Call(
                first_event=start,
                end_event=start + form.num_events_of_call,
                cache_blocks=frozenset(own[list(form.cache_numbers)].tolist()),
                cache_bytes=step.cache_bytes,
                host_cache_bytes=step.host_cache_bytes,
            )
        )
        start += len(blocks)
    return replace(timeline, events=EventTable.join(tables), calls=tuple(calls))


class _Births(NamedTuple):
    """The births of a timeline's blocks.

    Attributes:
        steps: The step in which each block was born, by the block's number; -1 for unused numbers.
        numbers: The position of each block among those born in that step, by its number.
    """

    steps: Numbers
    numbers: Numbers

    @classmethod
    def of(cls, timeline: Timeline) -> _Births:
        """Return the births of a timeline's blocks."""
        events = EventTable.of(timeline.events)
        places = np.flatnonzero(events.num_bytes >= 0)
        blocks = events.blocks[places]
        starts = np.array([call.first_event for call in timeline.calls[1:]], dtype=np.int64)
        # Births before each step, the first of which begins with the events.
        num_before = np.concatenate([[0], np.searchsorted(places, starts)])
        steps = np.searchsorted(starts, places, side="right")
        found = cls(*np.full((2, 1 + blocks.max(initial=-1)), -1, dtype=np.int64))
        found.steps[blocks] = steps
        found.numbers[blocks] = np.arange(len(blocks)) - num_before[steps]
        return found

    def list_blocks(self, step: int) -> Numbers:
        """Return the blocks born in a step, in order."""
        blocks = np.flatnonzero(self.steps == step)
        return blocks[np.argsort(self.numbers[blocks])]
