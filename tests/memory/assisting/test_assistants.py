"""Estimates with an assistant: what they add up to, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moetool.errors import UsageError
from moetool.memory.answers.figures import Method
from moetool.memory.assisting.refusals import refuse_elsewhere
from moetool.memory.estimate import estimate_memory
from moetool.memory.notes.peak_causes import note_peak_cause
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.runs import run_scenario
from moetool.report.memory.data import render_table_text
from moetool.simulation.assisted.drafting import join_models
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from tests.memory.saved_configs import make_builder, save_config
from tests.simulation.memory.memory_runs import set_up
from tests.simulation.skeletons import build_family_skeleton

TINY = Scenario(num_prompt_tokens=16, num_new_tokens=4, dtype="float32")


def save_assistant(folder: Path, **fields: int) -> str:
    """Write the configuration of a tiny model with one layer, and return its path."""
    path = Path(save_config("olmoe", folder))
    config = json.loads(path.read_text()) | {"num_hidden_layers": 1} | fields
    small = folder / "small.json"
    small.write_text(json.dumps(config))
    return str(small)


def test_both_models_are_held(tmp_path: Path) -> None:
    small = save_assistant(tmp_path)
    model = str(tmp_path / "config.json")
    (both,) = estimate_memory(model, [replace(TINY, assistant=small)], gpu="1GiB")
    alone, helper = (
        sum(-(-size // 512) * 512 for size in list_weight_bytes(make_builder(name).build(TINY)))
        for name in (model, small)
    )
    assert both.assistant is not None
    assert both.assistant.weights_bytes == helper
    assert both.weights_bytes == alone + helper
    # Three candidates and the target's own token, in one round.
    assert (both.assistant.num_candidates, both.assistant.num_rounds) == (20, 1)
    assert both.cache_bytes is not None
    assert 0 < both.assistant.cache_bytes < both.cache_bytes
    assert both.method is Method.APPROXIMATE
    assert both.confirmed_on is None
    assert (both.limits, both.offload, both.speed, both.ranks) == (None, None, None, ())
    assert both.at_peak is not None
    assert str(both.at_peak.layer).startswith(("target.", "assistant."))
    page = render_table_text([both])
    assert "20 tokens a round at most, 1 round" in page


def test_the_first_and_the_last_rounds_stand_for_all() -> None:
    target, assistant = (set_up(build_family_skeleton("olmoe")) for _ in range(2))
    assistant.generation_config.num_assistant_tokens = 1
    scenario = Scenario(num_prompt_tokens=12, num_new_tokens=15, assistant="small")
    found = run_scenario(target, scenario, assistant=assistant, workspace_bytes=0, context_bytes=0)
    run = MemoryRun(target, RunOptions(), assistant=assistant)
    timeline = run.generate(num_prompt_tokens=12, num_new_tokens=15)
    whole = replay_timeline(
        timeline, weight_bytes=list_weight_bytes(join_models(target, assistant))
    )
    assert found.assistant is not None
    assert found.assistant.num_rounds == len(timeline.calls) == 8
    assert found.assistant.cache_bytes == timeline.calls[-1].assistant_cache_bytes
    assert found.figures.cache_bytes == whole.cache_bytes
    assert found.figures.peak_allocated_bytes == whole.peak_allocated_bytes
    assert found.figures.weights_bytes == whole.weights_bytes


def test_a_model_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    small = save_assistant(tmp_path, vocab_size=64)
    with pytest.raises(UsageError, match="vocabularies of"):
        estimate_memory(str(tmp_path / "config.json"), [replace(TINY, assistant=small)])


def test_an_assistant_with_a_shorter_context_is_refused(tmp_path: Path) -> None:
    small = save_assistant(tmp_path, max_position_embeddings=8)
    with pytest.raises(UsageError, match="past the context of"):
        estimate_memory(str(tmp_path / "config.json"), [replace(TINY, assistant=small)])


def test_it_runs_alone_on_one_gpu() -> None:
    scenario = replace(TINY, assistant="small")
    with pytest.raises(UsageError, match="for one GPU") as raised:
        refuse_elsewhere(scenario, where="--parallel")
    assert "--parallel" in str(raised.value.hint)
    refuse_elsewhere(scenario, where=None)
    refuse_elsewhere(TINY, where="--engine")


def test_the_option_that_is_named_makes_the_peak_of_a_check_smaller() -> None:
    scenario = Scenario(num_prompt_tokens=12, num_new_tokens=8, assistant="small")
    heights = []
    for implementation in (None, "eager"):
        target, assistant = (
            build_family_skeleton("olmoe", intermediate_size=size).eval() for size in (512, 16)
        )
        # Later versions of transformers switch to it for each check.
        target.set_experts_implementation(implementation or "batched_mm")
        assistant.generation_config.num_assistant_tokens = 3
        asked = replace(scenario, experts_implementation=implementation)
        run = run_scenario(target, asked, assistant=assistant, workspace_bytes=0, context_bytes=0)
        said = note_peak_cause(target, asked, run.peaks[1])
        heights.append(run.peaks[1].activation_bytes)
        assert (said is None) == (implementation == "eager")
        if said is not None:
            assert said.startswith("Checking candidates makes the peak")
            assert "--experts-implementation eager" in said
    assert heights[1] < heights[0]
