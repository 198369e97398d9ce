"""Refusals of `--measure`, and scenarios that run on the same weights; no GPU is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moetool.errors import OutOfMemoryError, UsageError
from moetool.memory import measure
from moetool.memory.answers.figures import MemoryFigures
from moetool.memory.measure import measure_scenarios, refuse_unmeasurable
from moetool.memory.measured.measurement import BusBandwidth, Machine, Measurement, PhaseTimes
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.quantized.kinds import Quantization, QuantizedExperts
from moetool.simulation.memory.ordinary_tokens import find_special_tokens
from tests.families.tiny.configs import build_config
from tests.families.tiny.models import build_family
from tests.memory.saved_configs import make_builder as find_builder
from tests.memory.saved_configs import save_config
from tests.simulation.skeletons import build_family_skeleton

SCENARIO = Scenario(batch_size=1, num_prompt_tokens=4, num_new_tokens=2, dtype="float32")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has a GPU according to torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def make_builder(build: Callable[..., Any]) -> Any:
    """Return a builder that calls a test's own function."""
    return SimpleNamespace(
        subject=SimpleNamespace(model="some-model", code=None, headers=None, config={}), build=build
    )


def build_nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing was to be built")


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU that torch can use") as caught:
        measure_scenarios(make_builder(build_nothing), [SCENARIO])
    assert caught.value.hint.endswith("eave out --measure.")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (replace(SCENARIO, quantization=Quantization.NF4), "quantized weights"),
        (replace(SCENARIO, quantization=Quantization.INT8), "quantized weights"),
        (replace(SCENARIO, task=Task.TRACE), "task trace"),
    ],
)
def test_what_random_weights_can_not_show_is_refused_before_any_other(
    scenario: Scenario, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        measure_scenarios(make_builder(build_nothing), [SCENARIO, scenario])
    assert caught.value.hint.endswith("eave out --measure.")


@pytest.mark.usefixtures("gpu")
def test_quantized_weights_of_a_checkpoint_can_be_measured() -> None:
    nf4 = replace(SCENARIO, quantization=Quantization.NF4)
    refuse_unmeasurable([SCENARIO, nf4], has_weights=True)
    for_experts = replace(nf4, experts=QuantizedExperts.QUANTIZED)
    with pytest.raises(UsageError, match="Quantized experts can't be measured"):
        refuse_unmeasurable([for_experts], has_weights=True)
    with pytest.raises(UsageError, match="task trace"):
        refuse_unmeasurable([replace(nf4, task=Task.TRACE)], has_weights=True)


def test_a_checkpoint_has_weights_and_a_configuration_alone_has_none(tmp_path: Path) -> None:
    config = save_config("olmoe", tmp_path)
    assert not measure.has_weights(find_builder(config))
    assert not measure.has_weights(find_builder("mixtral-8x7b"))
    build_family_skeleton("olmoe").to_empty(device="cpu").save_pretrained(tmp_path / "saved")
    assert measure.has_weights(find_builder(str(tmp_path / "saved")))


def show_with_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "held"), [("echo 1234", 1234 * 2**20), ("echo '[N/A]'", None), ("exit 9", None)]
)
def test_what_the_gpu_holds_before_is_what_its_driver_says(
    script: str, held: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_with_nvidia_smi(tmp_path, script, monkeypatch)
    assert measure.find_held_bytes() == held


def test_the_gpu_asked_for_is_the_one_that_torch_sees_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    show_with_nvidia_smi(tmp_path, 'case "$*" in *--id=3) echo 7;; esac', monkeypatch)
    assert measure.find_held_bytes() == 7 * 2**20


def test_a_gpu_that_this_process_uses_already_can_not_say_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_with_nvidia_smi(tmp_path, "echo 5", monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert measure.find_held_bytes() is None


@pytest.mark.parametrize(("held", "context"), [(0, 900), (300, 600), (None, 900)])
def test_what_others_hold_is_not_the_run_s(
    held: int | None, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "empty_cache": None, "reset_peak_memory_stats": None, "synchronize": None,
        "mem_get_info": (10_000 - 5_900, 10_000), "memory_reserved": 5_000,
        "max_memory_reserved": 6_000, "max_memory_allocated": 5_500, "get_device_name": "a GPU",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(measure, "_run", lambda *_: 10)
    model: Any = SimpleNamespace(config=build_config("olmoe"))
    shown = measure._measure(model, SCENARIO, weights_bytes=1, held_before_bytes=held)
    assert (shown.context_bytes, shown.held_before_bytes) == (context, held)
    assert shown.figures.total_device_bytes == 6_000 + context


@pytest.mark.usefixtures("gpu")
def test_other_scenarios_can_be_measured() -> None:
    forward = replace(SCENARIO, task=Task.FORWARD, num_new_tokens=0)
    refuse_unmeasurable([SCENARIO, forward, replace(SCENARIO, cache=CacheKind.STATIC)])


@pytest.mark.usefixtures("gpu")
def test_a_model_that_does_not_fit_is_named() -> None:
    def build(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(OutOfMemoryError, match=r"^some-model doesn't fit") as caught:
        measure_scenarios(make_builder(build), [SCENARIO])
    assert (caught.value.exit_code, caught.value.hint) == (6, "Measure a smaller scenario.")


@pytest.mark.usefixtures("gpu")
def test_scenarios_that_differ_in_sizes_alone_run_on_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = PhaseTimes(0.5, None, num_prefills=3, num_decode_steps=0)
    bus = BusBandwidth(2e9, 1e9)
    machine = Machine(10, None, None, {})
    for name, value in {"_time": times, "measure_bus": bus, "describe_machine": machine}.items():
        monkeypatch.setattr(measure, name, lambda *_, value=value: value)
    figures = MemoryFigures(1, 1, 1, 1, 1)
    monkeypatch.setattr(
        measure, "_measure", lambda model, *_, **__: Measurement(model, figures, 1, 1.0)
    )
    built: list[tuple[Scenario, str]] = []

    def build(scenario: Scenario, *, device: str) -> Any:
        built.append((scenario, device))
        return f"model {len(built)}"

    scenarios = [
        SCENARIO,
        replace(SCENARIO, batch_size=2, num_prompt_tokens=3, has_padding=True),
        replace(SCENARIO, dtype="bfloat16"),
        replace(SCENARIO, dtype="bfloat16", attention="eager"),
        replace(SCENARIO, dtype="bfloat16", attention="eager", experts_implementation="eager"),
        replace(SCENARIO, dtype="bfloat16", attention="eager", experts_implementation="eager"),
    ]
    measured: Any = measure_scenarios(make_builder(build), scenarios)
    assert [scenario for scenario, _ in built] == [scenarios[index] for index in (0, 2, 3, 4)]
    assert {device for _, device in built} == {"cuda"}
    assert [each.gpu for each in measured] == [f"model {number}" for number in (1, 1, 2, 3, 4, 4)]
    assert {(each.times, each.bus, each.machine is machine) for each in measured} == {
        (times, bus, True)
    }


def test_prompts_are_of_many_tokens_and_of_none_with_a_meaning() -> None:
    model: Any = build_family("olmoe")
    prompts = measure._make_prompts(model, (4, 64))
    assert prompts.shape == (4, 64)
    chosen = set(prompts.flatten().tolist())
    assert len(chosen) > 50
    assert max(chosen) < model.config.vocab_size
    assert not chosen & find_special_tokens(model.config)
