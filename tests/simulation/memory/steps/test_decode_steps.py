"""Steps without block numbers, steps between two others, and timelines made of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.steps.decode_steps import (
    Step,
    StepForm,
    continue_timeline,
    find_step_between,
    take_step,
)
from moetool.simulation.memory.timeline import Call, Event, Origin, Timeline
from tests.simulation.memory.memory_runs import summarize

HALF = Fraction(1, 2)


class Row(NamedTuple):
    """An event of a step."""

    steps_ago: int
    number: int
    num_bytes: int
    origin: int


ROWS = (Row(0, 0, 100, 1), Row(1, 2, -1, 0))


def make_step(
    rows: Sequence[Row] = ROWS,
    *,
    cache_numbers: frozenset[int] = frozenset({0}),
    cache_bytes: int = 1000,
    num_events_of_call: int = 1,
) -> Step:
    steps_ago, numbers, num_bytes, origins = np.array(rows, dtype=np.int64).T
    form = StepForm(steps_ago, numbers, num_bytes >= 0, cache_numbers, num_events_of_call)
    return Step(form, num_bytes, origins, cache_bytes)


def list_rows(step: Step) -> list[Row]:
    columns = (step.form.steps_ago, step.form.numbers, step.num_bytes, step.origins)
    return [Row(*map(int, row)) for row in zip(*columns, strict=True)]


def replace_in_row(place: int, **changes: int) -> Step:
    rows = list(ROWS)
    rows[place] = rows[place]._replace(**changes)
    return make_step(rows)


def write_generation(
    num_steps: int, *, cache_bytes: Callable[[int], int] = lambda step: 100 * step
) -> Timeline:
    """Return a generation by hand, each of whose steps replaces the cache and a list of tokens.

    The prompt's blocks are gone once the second step has ended.
    """
    events: list[Event] = []
    calls: list[Call] = []
    number = 0

    def bear(num_bytes: int, origin: int) -> int:
        nonlocal number
        number += 1
        events.append(Event(number - 1, num_bytes, origin))
        return number - 1

    def free(block: int) -> None:
        events.append(Event(block, -1, 0))

    cache, tokens = bear(1000, 0), bear(8, 1)
    for step in range(num_steps):
        first = len(events)
        scores = bear(7, 2)
        larger = bear(cache_bytes(step), 0)
        free(cache)
        cache = larger
        calls.append(Call(first, len(events), frozenset({cache}), cache_bytes(step)))
        longer = bear(8 * (step + 2), 1)
        free(tokens)
        free(scores)
        tokens = longer
    origins = [Origin("", "", name) for name in ("cache", "tokens", "scores")]
    return Timeline(tuple(events), origins, tuple(calls), None)


def test_events_of_a_step_name_their_blocks_by_step_and_number() -> None:
    step = take_step(write_generation(5), 3)
    assert step is not None
    assert list_rows(step) == [
        Row(0, 0, 7, 2),
        Row(0, 1, 300, 0),
        Row(1, 1, -1, 0),
        Row(0, 2, 32 + 8, 1),
        Row(1, 2, -1, 0),
        Row(0, 0, -1, 0),
    ]
    assert step.form.cache_numbers == frozenset({1})
    assert step.form.num_events_of_call == 3
    assert step.cache_bytes == 300


def test_a_step_that_frees_what_the_prompt_left_is_none() -> None:
    assert take_step(write_generation(4), 1) is None
    assert take_step(write_generation(4), 2) is not None


def test_blocks_that_stay_in_the_cache_are_not_the_step_s_own() -> None:
    timeline = write_generation(4)
    calls = list(timeline.calls)
    # The first block of the step before.
    earlier = timeline.events[calls[1].first_event].block
    calls[2] = dataclasses.replace(calls[2], cache_blocks=calls[2].cache_blocks | {earlier})
    step = take_step(dataclasses.replace(timeline, calls=tuple(calls)), 2)
    assert step is not None
    assert step.form.cache_numbers == frozenset({1})


STEP = make_step()


@pytest.mark.parametrize(
    ("other", "is_alike"),
    [
        (STEP, True),
        (replace_in_row(0, num_bytes=5), True),
        (replace_in_row(0, origin=9), True),
        (make_step(cache_bytes=5), True),
        (replace_in_row(0, num_bytes=-1), False),
        (replace_in_row(1, num_bytes=0), False),
        (replace_in_row(1, steps_ago=2), False),
        (replace_in_row(1, number=1), False),
        (make_step(ROWS[:1]), False),
        (make_step(cache_numbers=frozenset()), False),
        (make_step(num_events_of_call=2), False),
    ],
)
def test_steps_are_alike_if_they_differ_in_sizes_alone(other: Step, is_alike: bool) -> None:
    assert STEP.form.is_like(other.form) == other.form.is_like(STEP.form) == is_alike
    assert (find_step_between(STEP, other, share=Fraction(0)) is not None) == is_alike


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 50), st.data())
def test_sizes_between_grow_evenly(first: int, more: int, length: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, length))
    ends = [
        dataclasses.replace(
            replace_in_row(0, num_bytes=first + more * n), cache_bytes=7 * first + more * n
        )
        for n in (0, length)
    ]
    between = find_step_between(*ends, share=Fraction(number, length))
    assert between is not None
    assert list_rows(between) == [Row(0, 0, first + more * number, 1), ROWS[1]]
    assert between.cache_bytes == 7 * first + more * number
    assert between.form.is_like(STEP.form)
    back = find_step_between(*reversed(ends), share=1 - Fraction(number, length))
    assert back is not None
    assert back.is_same_as(between)
    assert back.cache_bytes == between.cache_bytes


def test_there_is_nothing_between_sizes_with_parts_of_bytes() -> None:
    assert find_step_between(STEP, replace_in_row(0, num_bytes=101), share=HALF) is None
    odd = make_step(cache_bytes=1001)
    assert find_step_between(STEP, odd, share=HALF) is None
    assert find_step_between(STEP, replace_in_row(0, num_bytes=102), share=HALF) is not None


@pytest.mark.parametrize("num_calls", [2, 3, 6])
def test_a_timeline_continued_by_its_own_steps_is_itself(num_calls: int) -> None:
    timeline = write_generation(8)
    steps = [take(timeline, number) for number in range(num_calls, 7)]
    continued = continue_timeline(timeline, num_calls=num_calls, steps=steps)
    shorter = write_generation(7)
    assert summarize(continued) == summarize(shorter)
    assert len(continued.events) == len(shorter.events)
    for shown, expected in zip(continued.calls, shorter.calls, strict=True):
        assert shown.end_event == expected.end_event
        assert len(shown.cache_blocks) == 1
    assert continued.origins is timeline.origins


def test_steps_that_are_left_out_leave_no_block_behind() -> None:
    timeline = write_generation(12)
    steps = [take(timeline, number) for number in (6, 10)]
    continued = continue_timeline(timeline, num_calls=3, steps=steps)
    assert [call.cache_bytes for call in continued.calls] == [0, 100, 200, 600, 1000]
    births = [event.block for event in continued.events if event.num_bytes >= 0]
    assert len(set(births)) == len(births)
    alive = set(births) - {event.block for event in continued.events if event.num_bytes < 0}
    assert len(alive) == 2
    assert continued.calls[-1].cache_blocks <= alive
    assert summarize(continued).num_births_before == [2, 5, 8, 11, 14]


def test_nothing_at_all_continues_nothing() -> None:
    timeline = write_generation(4)
    assert continue_timeline(timeline, num_calls=3, steps=[]).calls == timeline.calls[:3]


def take(timeline: Timeline, number: int) -> Step:
    step = take_step(timeline, number)
    assert step is not None
    return step
