"""Scenarios past a model's context: refused, or reduced where the caller allows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moetool.errors import UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario
from tests.memory.saved_configs import make_runs, save_config

TINY = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=3, dtype="float32")


def test_the_default_run_of_a_model_with_a_short_context_is_one_that_it_can_do() -> None:
    (estimate,) = estimate_memory("demo")
    scenario = estimate.scenario
    assert (scenario.num_prompt_tokens, scenario.num_new_tokens) == (256, 256)
    assert estimate.notes[0] == (
        "The context is 512 tokens: the run has 256 instead of 2,048 prompt tokens."
    )
    with pytest.raises(UsageError, match="past the context of demo, 512 tokens"):
        estimate_memory("demo", [Scenario()])


def test_sizes_to_clip_are_the_callers_also_for_the_default_run() -> None:
    for sizes in ((), ["num_new_tokens"]):
        with pytest.raises(UsageError, match="past the context of demo, 512 tokens"):
            estimate_memory("demo", clipped_sizes=sizes)
    with pytest.raises(UsageError, match="clipped size can't be 'nonsense'"):
        estimate_memory("demo", clipped_sizes=["nonsense"])


def test_each_scenario_is_reduced_on_its_own(tmp_path: Path) -> None:
    tiny = save_config("olmoe", tmp_path)
    short, long = replace(TINY, num_new_tokens=8), replace(TINY, num_new_tokens=10_000)
    first, second = estimate_memory(tiny, [short, long], clipped_sizes=["num_new_tokens"])
    assert first.scenario == short
    assert second.scenario.num_prompt_tokens == 16
    assert 16 + second.scenario.num_new_tokens == make_runs(tiny).loader.builder.context
    assert "instead of 10,000 new tokens" in second.notes[0]
    assert "instead of" not in first.notes[0]
    with pytest.raises(UsageError, match="clipped size can't be 'batch_size'"):
        estimate_memory(tiny, [TINY], clipped_sizes=["batch_size"])
