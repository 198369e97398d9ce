"""Options of the library: enums and their values are accepted, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import moetool
from moetool import (
    AskedSource,
    Attention,
    CacheKind,
    Dtype,
    ExpertsImplementation,
    Quantization,
    QuantizedExperts,
    RoutingRecorder,
    Scenario,
    Task,
    estimate_memory,
    inspect_model,
    read_trace,
)
from moetool.errors import UsageError
from moetool.memory.sweep import list_scenarios
from moetool.tracing.options import GenerationOptions, TraceOptions
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf
from tests.tiny_models import build_model

OPTIONS: dict[str, type[StrEnum]] = {
    "task": Task,
    "dtype": Dtype,
    "attention": Attention,
    "experts_implementation": ExpertsImplementation,
    "cache": CacheKind,
    "quantization": Quantization,
    "experts": QuantizedExperts,
}
EVERY_CHOICE = [(name, choice) for name, kind in OPTIONS.items() for choice in kind]
NONSENSE: list[object] = [
    "",
    "nonsense",
    "NF4",
    0,
    1,
    True,
    None,
    1.5,
    b"nf4",
    ["nf4"],
    {},
    object(),
]
NO_FLAGS: list[object] = ["no", "false", 0, 1, None, []]


def make(**options: Any) -> Scenario:
    return Scenario(**options)


@pytest.mark.parametrize(("name", "choice"), EVERY_CHOICE)
def test_a_value_means_the_member_that_has_it(name: str, choice: StrEnum) -> None:
    by_value, by_member = make(**{name: choice.value}), make(**{name: choice})
    assert getattr(by_value, name) is getattr(by_member, name) is choice
    assert by_value == by_member
    assert hash(by_value) == hash(by_member)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", NONSENSE)
def test_what_is_no_choice_is_refused_with_the_choices(name: str, value: object) -> None:
    if value is None and name in ("attention", "experts_implementation"):
        assert getattr(make(**{name: value}), name) is None
        return
    with pytest.raises(UsageError, match=r"^The .* can't be ") as caught:
        make(**{name: value})
    assert all(choice.value in caught.value.hint for choice in OPTIONS[name])
    with pytest.raises(UsageError):
        replace(Scenario(), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["batch_size", "num_prompt_tokens", "num_new_tokens"])
@pytest.mark.parametrize(
    "value", ["8", True, False, 1.0, 1.5, float("nan"), [8], b"8", -1, 0, 2**70]
)
def test_sizes_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"^The .* can't be "):
        make(**{name: value})


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    scenario = make(batch_size=np.int64(8))
    assert type(scenario.batch_size) is int
    assert scenario == Scenario(batch_size=8)
    with pytest.raises(UsageError):
        make(batch_size=np.bool_(True))


@pytest.mark.parametrize("name", ["has_padding", "is_double_quantized"])
@pytest.mark.parametrize("value", NO_FLAGS)
def test_what_only_counts_as_true_or_false_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} can't be "):
        make(**{name: value})


@pytest.mark.parametrize(
    ("task", "number"), [(Task.GENERATE, 256), (Task.FORWARD, 0), (Task.TRACE, 0)]
)
def test_new_tokens_follow_from_the_task(task: Task, number: int) -> None:
    assert Scenario(task=task).num_new_tokens == number


def test_a_forward_pass_is_refused_new_tokens() -> None:
    with pytest.raises(UsageError, match="no new tokens"):
        Scenario(task=Task.FORWARD, num_new_tokens=1)
    assert Scenario(task=Task.TRACE, num_new_tokens=1).num_new_tokens == 1


@pytest.mark.parametrize("task", [Task.FORWARD, Task.TRACE])
def test_a_static_cache_is_refused_where_nothing_is_generated(task: Task) -> None:
    with pytest.raises(UsageError, match="static cache"):
        Scenario(task=task, cache=CacheKind.STATIC)


def test_a_message_stays_short_and_printable() -> None:
    with pytest.raises(UsageError) as caught:
        make(task="\x1b[31m" * 1_000_000)
    assert len(caught.value.message) < 200
    assert caught.value.message.isprintable()


SCENARIOS = [Scenario(num_prompt_tokens=8, num_new_tokens=2)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: inspect_model("demo", source="header"),
        lambda: inspect_model("demo", source=None),  # type: ignore[arg-type]
        lambda: inspect_model("demo", trust_remote_code="false"),  # type: ignore[arg-type]
        lambda: inspect_model(3),  # type: ignore[arg-type]
        lambda: inspect_model(None),  # type: ignore[arg-type]
        lambda: estimate_memory(3, SCENARIOS),  # type: ignore[arg-type]
        lambda: estimate_memory("demo", Scenario()),  # type: ignore[arg-type]
        lambda: estimate_memory("demo", [{"batch_size": 8}]),  # type: ignore[list-item]
        lambda: estimate_memory("demo", SCENARIOS, gpu=24),  # type: ignore[arg-type]
        lambda: estimate_memory("demo", SCENARIOS, gpu="h200", trace=3),  # type: ignore[arg-type]
        lambda: estimate_memory("demo", SCENARIOS, measure="no"),  # type: ignore[arg-type]
        lambda: estimate_memory("demo", SCENARIOS, trust_remote_code=1),  # type: ignore[arg-type]
        lambda: read_trace(None),  # type: ignore[arg-type]
        lambda: read_trace(3),  # type: ignore[arg-type]
        lambda: read_trace(b"trace.csv"),  # type: ignore[arg-type]
        lambda: read_trace("a\0b"),
        lambda: list_scenarios(Scenario(), batch_sizes=["8"]),  # type: ignore[list-item]
        lambda: list_scenarios(Scenario(), batch_sizes=8),  # type: ignore[arg-type]
        lambda: list_scenarios(Scenario(), batch_sizes="8"),  # type: ignore[arg-type]
        lambda: list_scenarios(Scenario(), prompt_tokens=[[8]]),  # type: ignore[list-item]
    ],
)
def test_every_entry_refuses_what_it_can_not_take(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.hint


def test_a_source_is_taken_by_its_value() -> None:
    by_value = inspect_model("demo", source="headers")
    assert by_value == inspect_model("demo", source=AskedSource.HEADERS)
    assert inspect_model("demo", source="skeleton").files is None


@pytest.mark.parametrize("layers", [3, "3", [True], [1.5], ["1"], [-1], [0], [], [None], {"a": 1}])
def test_a_recorder_refuses_layers_that_do_not_route(layers: Any) -> None:
    with pytest.raises(UsageError) as caught:
        RoutingRecorder(build_model("deepseek_v3"), layers=layers)
    assert "layer" in caught.value.message.lower()


@pytest.mark.parametrize(
    "options", [{"keep_scores": "no"}, {"allow_inexact": 1}, {"layers": range(0)}]
)
def test_a_recorder_refuses_other_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RoutingRecorder(build_model("mixtral"), **options)


@pytest.mark.parametrize("model", ["demo", None, nn.Linear])
def test_a_recorder_refuses_what_is_no_module(model: Any) -> None:
    with pytest.raises(UsageError, match="can't be of type"):
        RoutingRecorder(model)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"dtype": 16},
        {"special_tokens": "chat"},
        {"special_tokens": None},
        {"batch_size": "8"},
        {"batch_size": 0},
        {"batch_size": True},
        {"max_batch_tokens": 0},
        {"max_batch_tokens": "4096"},
        {"max_prompt_tokens": 1.5},
        {"max_prompt_tokens": 0},
        {"layers": [1, "2"]},
        {"layers": 3},
        {"device": 0},
        {"device_map": {"": 0}},
        {"revision": 7},
        {"trust_remote_code": "false"},
        {"with_probabilities": 1},
        {"allow_inexact": "no"},
        {"generation": {"max_new_tokens": 3}},
    ],
)
def test_a_trace_refuses_options_that_it_can_not_take(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TraceOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": "3"},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"temperature": 0},
        {"temperature": "1"},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": True},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.0},
        {"cache": "quantized"},
        {"cache": None},
    ],
)
def test_generation_refuses_options_that_it_can_not_take(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GenerationOptions(**{"max_new_tokens": 3, **options})


def test_options_that_can_be_taken_are_taken() -> None:
    generation = GenerationOptions(
        max_new_tokens=3, temperature=1, top_p=1, seed=2**64 - 1, cache="static"
    )
    options = TraceOptions(
        dtype="bfloat16", layers=frozenset({0, 2}), special_tokens="none", generation=generation
    )
    assert options.generation is generation


def test_the_enums_are_public_and_come_without_torch(tmp_path: Path) -> None:
    kinds: list[type[StrEnum]] = [*OPTIONS.values(), AskedSource]
    names = [kind.__name__ for kind in kinds]
    assert set(names) <= set(moetool.__all__)
    # Rows are measured and put into frames without it, too.
    names += ["Trace", "measure_specialization", "read_trace", "to_frame"]
    # So are GGUF files estimated.
    path = write_gguf(tmp_path / "tiny.gguf", moe_metadata(), moe_tensors())
    code = f"import sys; from moetool import {', '.join(names)}, estimate_memory; "
    code += f"estimate_memory({str(path)!r}); print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert ran.stdout.strip() == "False"
