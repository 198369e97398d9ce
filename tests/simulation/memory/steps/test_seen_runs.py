"""Generations that are expected from others, compared with those that run."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from transformers import PreTrainedModel

from moetool.simulation.caches.kinds import CacheKind, CachePlan
from moetool.simulation.memory.cuda_kernels import count_sort_bytes
from moetool.simulation.memory.forms import take_form
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.seen_runs import GivenTokens, SeenByOptions, SeenRuns
from moetool.simulation.memory.timeline import Call, Event, Origin, Timeline
from tests.simulation.memory.memory_runs import options_for
from tests.simulation.skeletons import build_family_skeleton

# More than the sliding windows of tiny models.
PROMPTS = (40, 47, 66)
FAMILIES = ["deepseek_v2", "gpt_oss", "mixtral"]


def run_all(skeleton: PreTrainedModel, options: RunOptions) -> SeenRuns:
    """Return the runs of two and three sequences, of which the latter have one prompt alone."""
    seen = SeenRuns()
    for batch_size, prompts in ((2, PROMPTS), (3, PROMPTS[:1])):
        run = MemoryRun(skeleton, replace(options, batch_size=batch_size), seen=seen)
        for num_tokens in prompts:
            run.generate(num_prompt_tokens=num_tokens, num_new_tokens=2)
    return seen


def list_events(timeline: Timeline) -> list[tuple[int, int, str, str, str]]:
    """Return the events of the prompt and the first step, with the names of their birthplaces."""
    places = timeline.origins
    return [
        (block, size, places[at].layer, places[at].module, places[at].operation)
        for block, size, at in timeline.events[: timeline.calls[1].end_event]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expected_generation_is_the_one_that_runs(family: str) -> None:
    skeleton = build_family_skeleton(family).eval()
    options = options_for(family)
    seen = run_all(skeleton, options)
    for batch_size, num_tokens in ((2, 91), (7, PROMPTS[0]), (3, 91), (7, 91)):
        expected = seen.expect(batch_size, GivenTokens(num_tokens))
        alone = MemoryRun(skeleton, replace(options, batch_size=batch_size))
        ran = alone.generate(num_prompt_tokens=num_tokens, num_new_tokens=2)
        assert expected is not None
        assert list_events(expected) == list_events(ran)
        assert expected.calls == ran.calls


@pytest.mark.parametrize("num_before", [0, 5])
def test_an_expected_generation_of_an_encoder_decoder_is_the_one_that_runs(num_before: int) -> None:
    skeleton = build_family_skeleton("switch_transformers").eval()
    options = RunOptions(is_routing_balanced=True)
    seen = SeenRuns()
    run = MemoryRun(skeleton, options, seen=seen)
    lengths = {"num_tokens_before": num_before, "num_new_tokens": 2}
    for num_tokens in PROMPTS:
        run.generate(num_prompt_tokens=num_tokens, **lengths)
    expected = seen.expect(1, run.count_given(90, num_before))
    ran = MemoryRun(skeleton, options).generate(num_prompt_tokens=90, **lengths)
    assert expected is not None
    assert list_events(expected) == list_events(ran)
    assert expected.calls == ran.calls
    assert seen.expect(1, run.count_given(90, num_before + 1)) is None


def test_the_layers_of_earlier_runs_stand_for_those_of_the_next() -> None:
    skeleton = build_family_skeleton("mixtral").eval()
    seen = SeenRuns()
    lengths = {"num_prompt_tokens": 40, "num_new_tokens": 2}
    first, again = (
        MemoryRun(skeleton, RunOptions(), seen=seen).generate(**lengths) for _ in range(2)
    )
    assert list_events(again) == list_events(first)
    assert list_events(again) == list_events(MemoryRun(skeleton, RunOptions()).generate(**lengths))


def test_a_single_run_says_nothing_about_other_sizes() -> None:
    seen = SeenRuns()
    run = MemoryRun(build_family_skeleton("mixtral").eval(), RunOptions(), seen=seen)
    run.generate(num_prompt_tokens=40, num_new_tokens=2)
    assert seen.expect(1, GivenTokens(41)) is None
    assert seen.expect(2, GivenTokens(40)) is None


def test_a_run_that_stopped_before_its_first_step_says_nothing() -> None:
    seen = SeenRuns()
    run = MemoryRun(build_family_skeleton("mixtral").eval(), RunOptions(), seen=seen)
    run.generate(num_prompt_tokens=40, num_new_tokens=2, num_calls=1)
    assert seen.expect(1, GivenTokens(40)) is None
    run.generate(num_prompt_tokens=40, num_new_tokens=2)
    assert seen.expect(1, GivenTokens(40)) is not None


def test_runs_on_other_terms_are_kept_apart_and_static_caches_are_not_expected() -> None:
    seen = SeenByOptions()
    padded = seen.find(RunOptions(has_padding=True))
    assert padded is seen.find(RunOptions(has_padding=True, batch_size=8))
    assert padded is not seen.find(RunOptions())
    assert seen.find(RunOptions(cache=CachePlan(CacheKind.STATIC))) is None
    assert seen.find(RunOptions(num_beams=2)) is None


@pytest.mark.parametrize("family", ["deepseek_v2", "mixtral", "nemotron_h"])
def test_a_batch_of_one_and_a_larger_one_tell_of_others(family: str) -> None:
    """A batch of one does without some blocks that all others have."""
    skeleton = build_family_skeleton(family).eval()
    options = options_for(family)
    seen = SeenRuns()

    def run(batch_size: int, seen: SeenRuns | None = None) -> Timeline:
        run = MemoryRun(skeleton, replace(options, batch_size=batch_size), seen=seen)
        return run.generate(num_prompt_tokens=PROMPTS[0], num_new_tokens=2)

    one, two, seven = run(1, seen), run(2, seen), run(7)
    assert len(one.events) < len(two.events)
    expected = seen.expect(7, GivenTokens(PROMPTS[0]))
    assert expected is not None
    # An allocator hands out whole blocks of 512 bytes, which hold any of these few numbers.
    placed = [
        [(block, -(-size // 512), *place) for block, size, *place in list_events(timeline)]
        for timeline in (expected, seven)
    ]
    assert placed[0] == placed[1]
    assert expected.calls == seven.calls
    assert take_form(two, one, share=Fraction(2)) is None


def test_additional_blocks_grow_with_the_sequences_or_the_sorted_rows() -> None:
    def write(*blocks: tuple[int, int]) -> Timeline:
        """Return a call that makes blocks, each of a place and of some bytes."""
        events = tuple(Event(block, size, at) for block, (at, size) in enumerate(blocks))
        places = [Origin("", "", name) for name in ("arange", "sort", "clone", "sum")]
        return Timeline(events, places, (Call(0, len(events), frozenset(), 0),), None)

    one = write((0, 8 * 1000), (0, 50))
    two = write((0, 8 * 2000), (1, count_sort_bytes(2000, 4)), (2, 600), (3, 8), (0, 100))
    formed = take_form(one, two, share=Fraction(1, 2))
    assert formed is not None
    sizes = [8 * 1000, count_sort_bytes(1000, 4), 300, 8, 50]
    assert [event.num_bytes for event in formed.events] == sizes
    # A seventh of 600 bytes isn't a whole number.
    assert take_form(one, two, share=Fraction(1, 7)) is None
