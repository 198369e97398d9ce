"""Measurements on an H200 against today's simulations."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory.accuracy import build_as_measured, prepare_case
from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.figures import MemoryFigures, Method
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedFigures, SimulatedRun
from moetool.quantized.kinds import Quantization

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "memory" / "measured"
MIB, GIB = 2**20, 2**30

# Model, then batch size, prompt tokens, new tokens and what else was chosen.
CASES: list[tuple[str, tuple[int, int, int], dict[str, Any]]] = [
    ("olmoe-1b-7b", (4, 512, 0), {"task": "forward"}),
    ("olmoe-1b-7b", (4, 512, 16), {"cache": "static"}),
    ("olmoe-1b-7b", (4, 512, 16), {"has_padding": True}),
    ("olmoe-1b-7b", (4, 512, 16), {"attention": "eager"}),
    ("qwen1.5-moe-a2.7b", (4, 512, 16), {"dtype": "float32"}),
    ("mixtral-8x7b", (32, 512, 16), {}),
    ("qwen3-30b-a3b", (1, 8192, 16), {}),
    ("phi-3.5-moe", (1, 128, 32), {}),
    ("granite-3.0-3b-a800m", (8, 2048, 16), {}),
    ("ernie-4.5-21b-a3b", (32, 512, 16), {}),
    ("deepseek-v2-lite", (32, 512, 16), {}),
    ("moonlight-16b-a3b", (8, 2048, 16), {}),
    ("gpt-oss-20b", (8, 2048, 16), {}),
    ("gemma-4-26b-a4b", (1, 8192, 16), {}),
    ("lfm2-8b-a1b", (32, 512, 16), {}),
    ("nemotron-3-nano-30b-a3b", (32, 512, 16), {}),
    ("qwen3.5-35b-a3b", (1, 128, 32), {}),
    ("switch-base-8", (4, 512, 16), {"dtype": "float32"}),
    ("jamba-v0.1", (1, 128, 32), {}),
]


@cache
def read_measured() -> dict[tuple[str, str], MemoryFigures]:
    """Return the recorded figures by model and options."""
    lines = (BENCHMARKS / "memory_h200.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        (line["model"], json.dumps(line["options"], sort_keys=True)): MemoryFigures(
            **{name: line[name] for name in MemoryFigures.__dataclass_fields__}
        )
        for line in map(json.loads, lines)
    }


def name_options(sizes: tuple[int, int, int], others: dict[str, Any]) -> dict[str, Any]:
    names = ("batch_size", "num_prompt_tokens", "num_new_tokens")
    return {**dict(zip(names, sizes, strict=True)), **others}


def find_measured(model: str, options: dict[str, Any]) -> MemoryFigures:
    return read_measured()[model, json.dumps(options, sort_keys=True)]


def simulate(model: str, options: dict[str, Any]) -> SimulatedRun:
    """Return a simulation, done once for all tests."""
    return simulate_options(model, json.dumps(options))


@cache
def simulate_options(model: str, text: str) -> SimulatedRun:
    # Not `estimate_memory`: some of these are past the model's context.
    builder, scenario = prepare_case(model, json.loads(text))
    return run_scenario(
        build_as_measured(builder, scenario, transformers="5.23.0"),
        scenario,
        workspace_bytes=find_workspace_bytes(find_gpu("h200")),
        context_bytes=CONTEXT_BYTES,
    )


@pytest.mark.parametrize(("model", "sizes", "others"), CASES)
def test_a_simulation_is_as_close_to_an_h200_as_promised(
    model: str, sizes: tuple[int, int, int], others: dict[str, Any]
) -> None:
    options = name_options(sizes, others)
    measured, run = find_measured(model, options), simulate(model, options)
    off = subtract(run.figures, measured)
    assert abs(off["weights_bytes"]) <= 4096
    assert off.get("cache_bytes", 0) == 0
    rest_bytes = known(measured.peak_allocated_bytes) - known(measured.weights_bytes)
    assert abs(off["peak_allocated_bytes"]) <= 0.001 * known(measured.peak_allocated_bytes)
    assert abs(off["peak_allocated_bytes"]) <= max(0.015 * rest_bytes, 8 * MIB)
    assert abs(off["peak_reserved_bytes"]) <= 0.01 * known(measured.peak_reserved_bytes)
    assert abs(off["total_device_bytes"]) <= 0.3 * GIB
    # Its encoder's and decoder's experts are looked up by what routers chose.
    assert (run.method is Method.APPROXIMATE) == (model == "switch-base-8")


def test_in_the_median_the_peak_is_even_closer() -> None:
    shares = []
    for model, sizes, others in CASES:
        options = name_options(sizes, others)
        measured_bytes = known(find_measured(model, options).peak_allocated_bytes)
        simulated_bytes = simulate(model, options).figures.peak_allocated_bytes
        shares.append(abs(simulated_bytes - measured_bytes) / measured_bytes)
    assert statistics.median(shares) <= 0.0002


def test_most_peaks_are_what_they_were_to_the_byte() -> None:
    exact = [
        simulate(model, options).figures.peak_allocated_bytes
        == find_measured(model, options).peak_allocated_bytes
        for model, options in (
            (model, name_options(sizes, others)) for model, sizes, others in CASES
        )
    ]
    assert sum(exact) >= 0.8 * len(exact)


@pytest.mark.parametrize("model", ["qwen1.5-moe-a2.7b", "phi-3.5-moe", "gpt-oss-20b"])
def test_products_with_a_bias_take_what_they_did_to_the_byte(model: str) -> None:
    options = name_options((1, 128, 32), {})
    simulated = simulate(model, options).figures.peak_allocated_bytes
    assert simulated == find_measured(model, options).peak_allocated_bytes


def test_every_model_that_was_measured_is_looked_at() -> None:
    assert {model for model, _, _ in CASES} == {model for model, _ in read_measured()}


def test_what_was_not_measured_is_the_cache_of_hybrids_alone() -> None:
    """Their states were not counted."""
    unknown = {
        (model, name)
        for (model, _), figures in read_measured().items()
        for name in MemoryFigures.__dataclass_fields__
        if getattr(figures, name) is None
    }
    hybrids = ("jamba-v0.1", "lfm2-8b-a1b", "nemotron-3-nano-30b-a3b", "qwen3.5-35b-a3b")
    assert sorted(unknown) == [(model, "cache_bytes") for model in hybrids]


def test_experts_that_run_one_by_one_are_approximate() -> None:
    options = name_options((4, 512, 16), {"experts_implementation": "eager"})
    measured, run = find_measured("olmoe-1b-7b", options), simulate("olmoe-1b-7b", options)
    off = subtract(run.figures, measured)
    assert run.method is Method.APPROXIMATE
    assert "as if routers sent every expert the same number of tokens" in run.notes[0]
    assert (off["weights_bytes"], off["cache_bytes"]) == (0, 0)
    # Random weights send some expert more tokens than its share.
    assert -0.002 < off["peak_allocated_bytes"] / known(measured.peak_allocated_bytes) < 0
    assert abs(off["peak_reserved_bytes"]) <= 0.01 * known(measured.peak_reserved_bytes)
    assert abs(off["total_device_bytes"]) <= 0.3 * GIB


LOADS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"quantization": Quantization.INT8},
    "nf4": {"quantization": Quantization.NF4},
    "nf4dq": {"quantization": Quantization.NF4, "is_double_quantized": True},
}


def read_loads() -> list[dict[str, Any]]:
    """Return what `from_pretrained` of OLMoE and runs after it showed, by kind of weights."""
    lines = (BENCHMARKS / "loading_h200.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("load", read_loads(), ids=lambda load: load["kind"])
def test_what_bitsandbytes_loaded_takes_as_much_in_simulation(load: dict[str, Any]) -> None:
    builder, scenario = prepare_case("olmoe-1b-7b", LOADS[load["kind"]])
    skeleton = builder.build(scenario)
    for batch_size, num_prompt_tokens, num_new_tokens, peak_bytes, _ in load["cases"]:
        sized = replace(
            scenario,
            batch_size=batch_size,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=num_new_tokens,
        )
        workspace_bytes = find_workspace_bytes(find_gpu("h200"))
        figures = run_scenario(
            skeleton, sized, workspace_bytes=workspace_bytes, context_bytes=CONTEXT_BYTES
        ).figures
        assert abs(figures.weights_bytes - load["allocated"]) <= 4096
        assert abs(figures.peak_allocated_bytes - peak_bytes) <= 0.001 * peak_bytes


def test_every_kind_of_load_is_looked_at() -> None:
    assert sorted(load["kind"] for load in read_loads()) == sorted(LOADS)


def subtract(one: SimulatedFigures, other: MemoryFigures) -> dict[str, int]:
    """Return the differences between figures that both contain."""
    pairs = {
        name: (getattr(one, name), getattr(other, name))
        for name in MemoryFigures.__dataclass_fields__
    }
    return {
        name: here - there
        for name, (here, there) in pairs.items()
        if here is not None and there is not None
    }


def known(number: int | None) -> int:
    assert number is not None
    return number
