"""Estimates for a TPU: weights, cache and bounds on time, and nothing of CUDA's allocator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu, list_gpus, read_gpus, read_tpus
from moetool.errors import UsageError
from moetool.inspection.inspect import inspect_model
from moetool.memory.estimate import estimate_memory
from moetool.memory.fitting.catalogue_fits import find_fitting_models
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario, Task
from moetool.quantizing.kinds import Quantization

# From Google Cloud's documentation: bytes of memory, GB/s, TFLOPS in bf16.
FACTS = {
    "tpu-v4": (32 * 2**30, 1200, 275),
    "tpu-v5e": (16 * 10**9, 819, 197),
    "tpu-v5p": (95 * 10**9, 2765, 459),
    "tpu-v6e": (32 * 10**9, 1638, 918),
}


@pytest.mark.parametrize("name", FACTS)
def test_the_figures_are_those_that_google_publishes(name: str) -> None:
    memory_bytes, gigabytes_per_s, tflops = FACTS[name]
    tpu = read_tpus()[name]

    assert tpu.memory_bytes == memory_bytes
    assert tpu.bandwidth_bytes_per_s == gigabytes_per_s * 1e9
    assert tpu.bf16_flops_per_s == tflops * 1e12
    assert tpu.is_tpu
    assert tpu.source is not None
    assert name.removeprefix("tpu-") in tpu.source


def test_tpus_have_names_and_are_not_among_the_gpus() -> None:
    assert set(FACTS) == set(read_tpus())
    assert not any(gpu.is_tpu for gpu in read_gpus().values())
    assert find_gpu("Google TPU v5e") is find_gpu("v5e") is read_tpus()["tpu-v5e"]
    assert {gpu.id for gpu in list_gpus(vendor="google")} == set(FACTS)


@pytest.fixture(scope="module")
def estimate(demo: Path) -> Estimate:
    (found,) = estimate_memory(str(demo), [Scenario(num_prompt_tokens=64)], gpu="tpu-v5e")
    return found


def test_weights_and_cache_are_those_of_the_model(estimate: Estimate, demo: Path) -> None:
    config = json.loads((demo / "config.json").read_text("utf-8"))
    parameters = inspect_model(demo).parameters
    assert parameters is not None
    assert parameters.num_bytes is not None
    assert estimate.figures.weights_bytes is not None
    (on_gpu,) = estimate_memory(str(demo), [Scenario(num_prompt_tokens=64)], gpu="h200")

    # The allocator rounds each tensor up to 512 bytes; buffers of rotary positions are added.
    assert 0 <= estimate.figures.weights_bytes - parameters.num_bytes < 512 * 200
    assert estimate.figures.weights_bytes == on_gpu.figures.weights_bytes
    assert estimate.figures.cache_bytes == on_gpu.figures.cache_bytes
    assert config["num_hidden_layers"] == 6


def test_what_holds_for_cuda_alone_is_null_with_its_reason(estimate: Estimate) -> None:
    figures = estimate.figures

    assert figures.peak_allocated_bytes is None
    assert figures.peak_reserved_bytes is None
    assert figures.total_device_bytes is None
    assert estimate.context_bytes is None
    assert estimate.fit is not None
    assert estimate.fit.fits is None
    assert "XLA plans its own buffers" in estimate.notes[0]
    assert "unknown" in estimate.notes[1]


def test_bounds_on_time_are_those_of_the_chip_s_bandwidth(estimate: Estimate) -> None:
    speed = estimate.speed
    assert speed is not None
    assert speed.decode_read_bytes is not None
    assert speed.decode_is_bound_by == "memory"
    assert speed.decode_s_per_token == pytest.approx(speed.decode_read_bytes / 819e9)


def test_a_model_whose_weights_are_larger_does_not_fit() -> None:
    (found,) = estimate_memory("olmoe-1b-7b", [Scenario(batch_size=64)], gpu="v5e")

    fit = found.fit
    assert fit is not None
    assert fit.fits is False
    assert found.figures.weights_bytes is not None
    assert found.figures.cache_bytes is not None
    held = found.figures.weights_bytes + found.figures.cache_bytes
    assert fit.headroom_bytes == 16 * 10**9 - held < 0


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(num_prompt_tokens=64, num_new_tokens=8, quantization=Quantization.NF4),
        Scenario(num_prompt_tokens=64, num_new_tokens=0, task=Task.TRAIN),
    ],
)
def test_what_needs_cuda_is_refused(scenario: Scenario, demo: Path) -> None:
    with pytest.raises(UsageError, match="is for GPUs"):
        estimate_memory(str(demo), [scenario], gpu="tpu-v4")


def test_what_fits_on_a_tpu_is_not_guessed() -> None:
    with pytest.raises(UsageError, match="is unknown"):
        find_fitting_models("tpu-v6e")
