"""Estimates of unusual kinds of attention against what an H100 and an H200 showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory.accuracy import prepare_case
from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.figures import Method
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedRun

MEASURED = [
    json.loads(line)
    for line in (
        Path(__file__).parents[3] / "benchmarks" / "memory" / "measured" / "mechanisms.jsonl"
    )
    .read_text(encoding="utf-8")
    .splitlines()
]
MIB = 2**20


def find(model: str, num_prompt_tokens: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        line
        for line in MEASURED
        if (line["model"], line["options"]["num_prompt_tokens"]) == (model, num_prompt_tokens)
    ]
    (line,) = found
    return line


def simulate(line: dict[str, Any]) -> SimulatedRun:
    # Measured with transformers 5.24, which keeps more in float32 than before.
    builder, scenario = prepare_case(line["model"], line["options"])
    return run_scenario(
        builder.build(scenario),
        scenario,
        workspace_bytes=find_workspace_bytes(find_gpu("h200")),
        context_bytes=CONTEXT_BYTES,
    )


# By model and prompt; the longest prompts make the peak in attention, the shortest in the experts.
EXACT = (
    ("deepseek-v4-flash", 2048),
    ("deepseek-v4-flash", 1000),
    ("deepseek-v3.2", 777),
    ("glm-5", 2048),
    ("hy_v4", 2048),
    ("minimax-m3", 2048),
    ("kimi_linear", 2048),
    ("bailing_hybrid", 777),
    ("qwen3-next-80b-a3b", 2048),
    ("granitemoehybrid", 2048),
    ("zaya", 2048),
    ("mimo-v2-flash", 777),
    ("nemotron-3-nano-30b-a3b", 2048),
    ("glm-4.5-air", 2048),
)


@pytest.mark.parametrize(("model", "num_prompt_tokens"), EXACT)
def test_peak_weights_and_cache_are_met_to_the_byte(model: str, num_prompt_tokens: int) -> None:
    line = find(model, num_prompt_tokens)
    run = simulate(line)
    assert run.method is Method.SIMULATED
    assert run.figures.weights_bytes == line["weights_bytes"]
    assert run.figures.cache_bytes == line["cache_bytes"]
    assert run.figures.peak_allocated_bytes == line["peak_allocated_bytes"]


@pytest.mark.parametrize("num_prompt_tokens", [2048, 256])
def test_a_long_generation_of_an_encoder_decoder_is_met(num_prompt_tokens: int) -> None:
    """A few of its 256 and 300 steps ran.

    Its 12 routers are cast to float32 as it runs, which frees their weights in bfloat16: simulated
    runs keep those.
    """
    line = find("switch-base-8", num_prompt_tokens)
    run = simulate(line)
    assert run.figures.cache_bytes == line["cache_bytes"]
    assert run.figures.peak_reserved_bytes == line["peak_reserved_bytes"]
    allocated_bytes = run.figures.peak_allocated_bytes or 0
    assert 0 <= allocated_bytes - line["peak_allocated_bytes"] <= 12 * (8 * 768 * 2)


@pytest.mark.parametrize("model", ["deepseek-v3", "deepseek-v3.2"])
def test_a_run_fits_that_gives_memory_back_where_none_is_left(model: str) -> None:
    """They ran on an H100, where torch reserved 71.6 GiB; on a larger GPU it would be 87."""
    line = find(model, 512)
    run, h100 = simulate(line), find_gpu("h100")
    assert (run.figures.total_device_bytes or 0) > h100.memory_bytes
    limited = run.limit_to(h100.memory_bytes)
    assert limited is not None
    reserved_bytes = limited.figures.peak_reserved_bytes
    assert reserved_bytes == pytest.approx(line["peak_reserved_bytes"], rel=0.005)
    allocated_bytes = limited.figures.peak_allocated_bytes or 0
    assert abs(allocated_bytes - line["peak_allocated_bytes"]) < 2 * MIB


def test_experts_that_are_looked_up_one_by_one_are_estimated_as_if_they_were_balanced() -> None:
    line = find("dbrx", 777)
    run = simulate(line)
    assert run.method is Method.APPROXIMATE
    assert run.figures.peak_allocated_bytes == pytest.approx(line["peak_allocated_bytes"], rel=2e-4)
