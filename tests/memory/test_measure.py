"""What `--measure` refuses, and which scenarios run on the same weights; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moetool.errors import OutOfMemoryError, UsageError
from moetool.memory import measure
from moetool.memory.measure import measure_scenarios, refuse_unmeasurable
from moetool.memory.scenario import CacheKind, Quantization, Scenario, Task

SCENARIO = Scenario(batch_size=1, num_prompt_tokens=4, num_new_tokens=2, dtype="float32")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of which torch says that it has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def make_builder(build: Callable[..., Any]) -> Any:
    """Return what builds models in a test's own way."""
    return SimpleNamespace(subject=SimpleNamespace(model="some-model"), build=build)


def build_nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing was to be built")


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU that torch can use") as caught:
        measure_scenarios(make_builder(build_nothing), [SCENARIO])
    assert caught.value.hint == "Leave --measure out."


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (replace(SCENARIO, quantization=Quantization.NF4), "quantized weights"),
        (replace(SCENARIO, quantization=Quantization.INT8), "quantized weights"),
        (replace(SCENARIO, task=Task.TRACE), "route-trace"),
    ],
)
def test_what_random_weights_can_not_show_is_refused_before_any_other(
    scenario: Scenario, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        measure_scenarios(make_builder(build_nothing), [SCENARIO, scenario])
    assert caught.value.hint == "Leave --measure out."


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
    monkeypatch.setattr(measure, "_measure", lambda model, *_, **__: model)
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
    assert measured == [f"model {number}" for number in (1, 1, 2, 3, 4, 4)]
