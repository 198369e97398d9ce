"""Generations of which a few steps ran, compared with those of which every step did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.simulation.caches.kinds import CacheKind, CachePlan
from moetool.simulation.memory.long_generation import (
    DEFAULT_BUDGET,
    StepBudget,
    _Sampler,
    simulate_generation,
)
from moetool.simulation.memory.memory_run import MemoryRun
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.steps.decode_steps import take_step
from moetool.simulation.memory.timeline import Call, Event, Origin, Timeline
from tests.simulation.memory.memory_runs import options_for, summarize, until_last_call
from tests.simulation.skeletons import build_family_skeleton

# Of the tiny families' sliding windows.
WINDOW = 16


class CountedRun:
    """A run that counts its calls of the model."""

    def __init__(self, run: MemoryRun) -> None:
        self._run = run
        self.num_calls = 0

    def generate(self, **given: Any) -> Timeline:
        timeline = self._run.generate(**given)
        self.num_calls += len(timeline.calls)
        return timeline

    @property
    def can_start_later(self) -> bool:
        return self._run.can_start_later


def build_run(family: str, **options: Any) -> tuple[CountedRun, Sequence[int]]:
    """Return a run of a family's skeleton, and the bytes of its storages."""
    skeleton = build_family_skeleton(family).eval()
    run = MemoryRun(skeleton, options_for(family, **options))
    return CountedRun(run), list_weight_bytes(skeleton)


def simulate(
    run: CountedRun | RunByHand,
    *,
    num_prompt_tokens: int,
    num_new_tokens: int,
    budget: StepBudget = DEFAULT_BUDGET,
) -> Timeline | None:
    return simulate_generation(
        cast("MemoryRun", run),
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        budget=budget,
    )


class RunByHand:
    """A run in which each step makes a new cache and block, and frees those of the step before.

    Args:
        form: Returns the number of further blocks that a step makes, by the tokens before it.
        size: Returns the size of the step's block in bytes, by the tokens before it.
    """

    can_start_later = True

    def __init__(
        self,
        form: Callable[[int], int] = lambda _: 0,
        size: Callable[[int], int] = lambda num_tokens: 8 * num_tokens,
    ) -> None:
        self._form = form
        self._size = size
        self.prompts: list[int] = []

    def generate(
        self,
        *,
        num_prompt_tokens: int,
        num_new_tokens: int,
        num_tokens_before: int = 0,
        num_tokens_after: int = 0,  # noqa: ARG002  (only a search asks for room)
        num_calls: int | None = None,
    ) -> Timeline:
        num_prompt_tokens += num_tokens_before
        self.prompts.append(num_prompt_tokens)
        events: list[Event] = []
        calls: list[Call] = []
        last: list[int] = []
        for step in range(num_new_tokens):
            first, num_tokens = len(events), num_prompt_tokens + step
            if step == num_calls:
                calls.append(Call(first, first, frozenset(), 0))
                break
            sizes = [16 * num_tokens, self._size(num_tokens), *[1] * self._form(num_tokens)]
            blocks = [first + place for place in range(len(sizes))]
            events += [Event(b, size, 0) for b, size in zip(blocks, sizes, strict=True)]
            events += [Event(block, -1, 0) for block in last]
            calls.append(Call(first, len(events), frozenset(blocks[:1]), sizes[0]))
            last = blocks
        return Timeline(tuple(events), [Origin("", "", "step")], tuple(calls), None)


def test_steps_run_by_the_number_of_stretches_not_of_tokens() -> None:
    run = RunByHand()
    timeline = simulate(run, num_prompt_tokens=100, num_new_tokens=1000)
    assert timeline is not None
    # The first step that counts, the one half-way and the last one: two tokens before each.
    assert run.prompts == [100, 100 + (2 + 999) // 2 - 2, 100 + 999 - 2]
    assert summarize(timeline) == summarize(
        run.generate(num_prompt_tokens=100, num_new_tokens=1000)
    )


@pytest.mark.parametrize("end", [150, 151, 157, 198])
def test_a_stretch_ends_where_steps_begin_to_differ(end: int) -> None:
    """As with a sliding window: from where it is full, a size stops growing."""
    budget = StepBudget(most_samples=40)
    run = RunByHand(
        form=lambda num_tokens: int(num_tokens < end),
        size=lambda num_tokens: 8 * min(num_tokens, end),
    )
    timeline = simulate(run, num_prompt_tokens=100, num_new_tokens=200, budget=budget)
    assert timeline is not None
    assert summarize(timeline) == summarize(run.generate(num_prompt_tokens=100, num_new_tokens=200))


def test_steps_that_alternate_follow_from_no_others() -> None:
    run = RunByHand(form=lambda num_tokens: num_tokens % 2)
    assert simulate(run, num_prompt_tokens=100, num_new_tokens=1000) is None
    # The others would have to be too many.
    assert len(run.prompts) == 4


def find_steps_needed(form: Callable[[int], object], first: int, last: int) -> set[int]:
    """Return the steps that halving runs until steps of one form lie between two that ran."""
    middle = (first + last) // 2
    needed = {first, middle, last}
    if last - first > 1 and not form(first) == form(middle) == form(last):
        for ends in ((first, middle), (middle, last)):
            needed |= find_steps_needed(form, *ends)
    return needed


@settings(max_examples=60)
@given(
    changes=st.sets(st.integers(1, 120), max_size=4),
    last=st.integers(3, 120),
    most_samples=st.integers(3, 30),
)
def test_it_gives_up_only_where_the_steps_needed_are_too_many(
    changes: set[int], last: int, most_samples: int
) -> None:
    """Wherever steps change, even if they change back."""

    def count_blocks(number: int) -> int:
        return sum(change <= number for change in changes) % 2

    def find_form(number: int) -> tuple[int, int]:
        """Return the blocks that a step makes, and those that it frees."""
        return count_blocks(number), count_blocks(number - 1)

    needed = find_steps_needed(find_form, 2, last)
    run = RunByHand(form=count_blocks)
    sampler = _Sampler(
        cast("MemoryRun", run),
        num_prompt_tokens=0,
        num_new_tokens=last + 1,
        most_samples=most_samples,
    )
    assert sampler.cover(2, last) == (len(needed) <= most_samples)
    assert {prompt + 2 for prompt in run.prompts} <= needed


@pytest.mark.parametrize("num_new_tokens", [1, 16, 24, 32])
def test_a_generation_of_few_steps_runs_whatever_they_do(num_new_tokens: int) -> None:
    run = RunByHand(form=lambda num_tokens: num_tokens * num_tokens % 3)
    timeline = simulate(run, num_prompt_tokens=5, num_new_tokens=num_new_tokens)
    assert timeline is not None
    assert run.prompts[-1] == 5
    in_full = run.generate(num_prompt_tokens=5, num_new_tokens=num_new_tokens)
    assert timeline == in_full


@pytest.mark.parametrize(
    ("most_events", "numbers"),
    [
        (10**6, [*range(100, 300)]),
        # Of 197 steps of four events each, every second, third and seventh.
        (4 * 100, [100, 101, 102, *range(103, 300, 2)]),
        (4 * 90, [100, 101, 102, *[*range(299, 102, -3)][::-1]]),
        (4 * 30, [100, 101, 102, *[*range(299, 102, -7)][::-1]]),
    ],
)
def test_of_many_steps_every_nth_is_told_and_the_last(most_events: int, numbers: list[int]) -> None:
    run = RunByHand()
    budget = StepBudget(most_events=most_events)
    timeline = simulate(run, num_prompt_tokens=100, num_new_tokens=200, budget=budget)
    in_full = run.generate(num_prompt_tokens=100, num_new_tokens=200)
    assert timeline is not None
    assert [call.cache_bytes for call in timeline.calls] == [16 * number for number in numbers]
    profiles = [replay_timeline(shown, weight_bytes=[]) for shown in (timeline, in_full)]
    assert profiles[0] == profiles[1]


def test_steps_with_a_static_cache_all_run() -> None:
    budget = StepBudget(few_steps=2, most_steps=4)
    run, _ = build_run("deepseek_v3", cache=CachePlan(CacheKind.STATIC))
    timeline = simulate(run, num_prompt_tokens=5, num_new_tokens=4, budget=budget)
    assert timeline is not None
    assert summarize(timeline) == summarize(run.generate(num_prompt_tokens=5, num_new_tokens=4))
    assert simulate(run, num_prompt_tokens=5, num_new_tokens=5, budget=budget) is None


def test_steps_of_a_family_that_compresses_now_and_then_follow_from_no_others() -> None:
    budget = StepBudget(most_samples=3)
    run, _ = build_run("deepseek_v4")
    assert simulate(run, num_prompt_tokens=5, num_new_tokens=40, budget=budget) is None


def test_steps_around_the_one_that_fills_the_window_are_those_that_run() -> None:
    run, _ = build_run("mixtral")
    num_prompt_tokens, last = WINDOW - 5, 12
    in_full = run.generate(num_prompt_tokens=num_prompt_tokens, num_new_tokens=last + 2)
    sampler = _Sampler(
        cast("MemoryRun", run),
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=last + 2,
        most_samples=last,
    )
    assert sampler.cover(2, last)
    kept = [sampler.find(number).cache_bytes for number in range(2, last + 1)]
    assert kept[0] < kept[1] < kept[2]
    assert len(set(kept[4:])) == 1
    for number in range(2, last + 1):
        step = take_step(in_full, number)
        assert step is not None
        found = sampler.find(number)
        assert found.is_same_as(step)
        assert found.cache_bytes == step.cache_bytes


@pytest.mark.parametrize(
    ("family", "num_prompt_tokens", "num_new_tokens", "options"),
    [
        # Windows are full from the start.
        ("mixtral", WINDOW + 1, 40, {}),
        ("qwen3_next", 5, 17, {}),
        ("deepseek_v3", 5, 17, {"has_padding": True, "batch_size": 2}),
        # Tokens written earlier are the decoder's.
        ("switch_transformers", 5, 40, {}),
        ("switch_transformers", 9, 33, {"has_padding": True, "batch_size": 2}),
        ("nllb-moe", 5, 40, {}),
    ],
)
def test_a_generation_of_a_few_steps_is_that_of_every_step(
    family: str,
    num_prompt_tokens: int,
    num_new_tokens: int,
    options: dict[str, Any],
) -> None:
    lengths = {"num_prompt_tokens": num_prompt_tokens, "num_new_tokens": num_new_tokens}
    run, weight_bytes = build_run(family, **options)
    extended = simulate(run, num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens)
    assert extended is not None
    assert run.num_calls < num_new_tokens
    in_full = run.generate(**lengths)
    assert len(extended.calls) == num_new_tokens
    # After the last call the next one is prepared, as after the others.
    assert summarize(until_last_call(extended)) == summarize(until_last_call(in_full))
    profiles = [
        replay_timeline(timeline, weight_bytes=weight_bytes) for timeline in (extended, in_full)
    ]
    assert profiles[0] == profiles[1]


def test_a_generation_that_casts_weights_as_it_runs_is_that_of_every_step() -> None:
    """Switch casts its routers to float32 when they first run."""
    skeleton = build_family_skeleton("switch_transformers").eval().bfloat16()
    run = CountedRun(MemoryRun(skeleton, options_for("switch_transformers")))
    in_full = run.generate(num_prompt_tokens=5, num_new_tokens=24)
    assert {parameter.dtype for parameter in skeleton.parameters()} == {torch.bfloat16}
    run.num_calls = 0
    extended = simulate(run, num_prompt_tokens=5, num_new_tokens=24)
    assert extended is not None
    assert run.num_calls < len(in_full.calls)
    assert summarize(until_last_call(extended)) == summarize(until_last_call(in_full))
