"""Simulated generations with an assistant, compared with real ones on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation import stopping_criteria

from moetool.simulation.assisted.drafting import find_num_candidates, join_models
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.ordinary_tokens import find_ordinary_token
from moetool.simulation.memory.timeline import Origins, Timeline
from moetool.simulation.meta.replaced import replaced
from tests.families.tiny.configs import build_config
from tests.simulation.memory.memory_runs import set_up, summarize, until_last_call, watching
from tests.simulation.skeletons import build_family_skeleton

NUM_PROMPT_TOKENS, NUM_NEW_TOKENS, NUM_CANDIDATES = 12, 10, 3


@contextmanager
def being_sure() -> Iterator[None]:
    """Let the assistant go on, after it has computed how sure it is."""
    criteria: Any = stopping_criteria.ConfidenceCriteria
    decide = criteria.__call__

    def go_on(self: Any, *args: Any, **kwargs: Any) -> bool:
        decide(self, *args, **kwargs)
        return False

    with replaced(criteria, {"__call__": go_on}):
        yield


def assist_on_cpu(family: str) -> tuple[Timeline, list[tuple[str, int]]]:
    """Return the timeline of a real run that accepts every candidate, and the lengths of its calls."""
    target, assistant = (
        set_up(AutoModelForCausalLM.from_config(build_config(family))) for _ in range(2)
    )
    assistant.generation_config.num_assistant_tokens = NUM_CANDIDATES
    token_id = find_ordinary_token(target.config)
    lengths: list[tuple[str, int]] = []

    def prefer(_: Any, __: Any, logits: torch.Tensor) -> None:
        logits[..., token_id].fill_(1)

    for name, model in (("target", target), ("assistant", assistant)):
        # Both always choose the same token.
        head = model.get_output_embeddings()
        head.weight.data.zero_()
        head.register_forward_hook(prefer)

        def note(_: Any, __: Any, kwargs: dict[str, Any], name: str = name) -> None:
            lengths.append((name, kwargs["input_ids"].shape[1]))

        model.register_forward_pre_hook(note, with_kwargs=True)
    origins, calls = Origins(), list[Any]()
    recorder = AllocationRecorder(join_models(target, assistant), origins=origins, device="cpu")
    with torch.inference_mode(), being_sure(), recorder, watching(target, recorder, calls):
        input_ids = torch.zeros((1, NUM_PROMPT_TOKENS), dtype=torch.long)
        input_ids.fill_(token_id)
        kept = target.generate(
            input_ids,
            assistant_model=assistant,
            max_new_tokens=NUM_NEW_TOKENS,
            disable_compile=True,
        )
        events = tuple(recorder.events)
    del kept
    return Timeline(events, origins.found, tuple(calls), recorder.workspace_block), lengths


def build_pair(family: str) -> tuple[Any, Any]:
    target, assistant = (set_up(build_family_skeleton(family)) for _ in range(2))
    assistant.generation_config.num_assistant_tokens = NUM_CANDIDATES
    return target, assistant


@cache
def simulate(
    family: str, *, num_new_tokens: int = NUM_NEW_TOKENS, is_each_layer_run: bool = False
) -> Timeline:
    target, assistant = build_pair(family)
    run = MemoryRun(target, RunOptions(), assistant=assistant, is_each_layer_run=is_each_layer_run)
    return run.generate(num_prompt_tokens=NUM_PROMPT_TOKENS, num_new_tokens=num_new_tokens)


def count_births(timeline: Timeline) -> Counter[tuple[tuple[str, str], int]]:
    """Return how often each place took a block of each size, copies of configurations aside."""
    found = summarize(until_last_call(timeline), with_numbers=False)
    places = Counter((each.origin, each.num_bytes) for each in found.happenings if each.num_bytes)
    for operation in ("clone", "set_", "new_empty"):
        # Python copies a number on the CPU in another way than one on the meta device.
        del places[(operation, ""), 8]
    return places


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_a_real_run_takes_the_same_blocks(family: str) -> None:
    real, lengths = assist_on_cpu(family)
    simulated = simulate(family)
    # Each round's candidates and one token, and the last one's.
    assert [length for name, length in lengths if name == "target"] == [12 + 3, 4, 2]
    assert count_births(simulated) == count_births(real)
    own = [call.cache_bytes - call.assistant_cache_bytes for call in simulated.calls]
    assert own == [call.cache_bytes for call in real.calls]


def test_layers_that_are_the_same_run_once() -> None:
    once, each = (summarize(simulate("olmoe", is_each_layer_run=flag)) for flag in (False, True))
    assert once == each


def test_a_call_begins_with_its_draft() -> None:
    timeline = simulate("olmoe")
    for call in timeline.calls:
        paths = [
            f"{origin.layer}.{origin.module}"
            for event in timeline.events[call.first_event : call.end_event]
            if event.num_bytes >= 0
            for origin in [timeline.origins[event.origin]]
        ]
        drafted = [number for number, path in enumerate(paths) if "assistant." in path]
        checked = [number for number, path in enumerate(paths) if "target." in path]
        assert max(drafted) < min(checked)


def test_both_caches_hold_the_text() -> None:
    last = simulate("olmoe").calls[-1]
    # The assistant doesn't read the last candidate, nor the token that the target adds to it.
    num_tokens = NUM_PROMPT_TOKENS + NUM_NEW_TOKENS - 1
    own = last.cache_bytes - last.assistant_cache_bytes
    assert own * (num_tokens - 1) == last.assistant_cache_bytes * num_tokens


def test_a_configuration_says_how_many_tokens_are_drafted() -> None:
    _, assistant = build_pair("olmoe")
    assert find_num_candidates(assistant) == NUM_CANDIDATES
    assistant.generation_config.num_assistant_tokens = None
    assert find_num_candidates(assistant) == 20


def test_models_and_functions_are_left_as_they_were() -> None:
    target, assistant = build_pair("olmoe")
    criteria: Any = stopping_criteria.ConfidenceCriteria
    before = (dict(vars(target)), dict(vars(assistant)), criteria.__call__)
    run = MemoryRun(target, RunOptions(), assistant=assistant)
    run.generate(num_prompt_tokens=NUM_PROMPT_TOKENS, num_new_tokens=NUM_NEW_TOKENS, num_calls=1)
    assert (vars(target), vars(assistant), criteria.__call__) == before
