"""Notes on the peak of a long prompt, whose options make it smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moetool.memory.notes.peak_causes import note_peak_cause
from moetool.memory.scenario import CacheKind, Scenario
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedRun
from tests.simulation.skeletons import build_family_skeleton

LONG = Scenario(batch_size=16, num_prompt_tokens=512, num_new_tokens=1, attention="sdpa")


def run(scenario: Scenario, family: str = "qwen3_moe", **fields: Any) -> tuple[Any, SimulatedRun]:
    skeleton = build_family_skeleton(family, **fields).eval()
    skeleton.set_attn_implementation(scenario.attention or "sdpa")
    if scenario.experts_implementation is not None:
        skeleton.set_experts_implementation(scenario.experts_implementation)
    return skeleton, run_scenario(skeleton, scenario, workspace_bytes=0, context_bytes=0)


def note(scenario: Scenario, **fields: Any) -> tuple[str | None, int]:
    """Return the note on a scenario's prompt, and the bytes at its peak."""
    skeleton, simulated = run(scenario, **fields)
    peak = simulated.peaks[0]
    return note_peak_cause(skeleton, scenario, peak), peak.above_weights_bytes


@pytest.mark.parametrize(
    ("options", "fields", "words", "remedy"),
    [
        (
            {"experts_implementation": "grouped_mm"},
            {},
            "Activations in the experts make the peak",
            {"experts_implementation": "eager"},
        ),
        (
            {"task": "forward", "num_new_tokens": 0},
            {"vocab_size": 4096},
            "The logits of the prompt make the peak",
            {"task": "generate", "num_new_tokens": 1},
        ),
    ],
)
def test_the_option_that_is_named_makes_the_peak_smaller(
    options: dict[str, Any], fields: dict[str, Any], words: str, remedy: dict[str, Any]
) -> None:
    scenario = replace(LONG, **options)
    said, before = note(scenario, **fields)
    assert said is not None
    assert said.startswith(words)
    (name, value), *_ = remedy.items()
    assert f"--{name.replace('_', '-')} {value}" in said
    _, after = note(replace(scenario, **remedy), **fields)
    assert after < before


def test_short_prompts_need_no_note() -> None:
    assert note(replace(LONG, batch_size=1))[0] is None


def test_the_layer_of_a_peak_is_named_although_none_repeats_another() -> None:
    on_gpu, offloaded = (
        run(replace(LONG, num_new_tokens=2, cache=cache))[1].peaks
        for cache in (CacheKind.DYNAMIC, CacheKind.OFFLOADED)
    )
    assert offloaded[0].operation == on_gpu[0].operation
    layers = [peak.layer for peak in (*on_gpu, *offloaded)]
    assert all(layer is not None and layer.startswith("model.layers.") for layer in layers)
