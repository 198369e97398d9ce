"""Estimates that are refused, with a hint at what to ask instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moetool.errors import InputError, MoetoolError, UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario
from moetool.memory.serving.answer import Engine, ServingOptions
from moetool.quantizing.kinds import Quantization
from tests.memory.saved_configs import save_config

TINY = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=3, dtype="float32")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A tiny model's config.json."""
    return save_config("olmoe", tmp_path)


@pytest.mark.parametrize(
    ("ask", "kind", "error", "hint"),
    [
        (
            lambda: estimate_memory("gpt-4", measure=True),
            UsageError,
            "GPT-4 is known from reports",
            "--measure",
        ),
        (lambda: estimate_memory("demo", gpu="h2000"), UsageError, "'h2000'", "h200"),
        (
            lambda: estimate_memory("demo", [replace(TINY, num_prompt_tokens=10_000)]),
            UsageError,
            "10,000 prompt and 3 new tokens are past the context of demo",
            "--prompt-tokens",
        ),
        (
            lambda: estimate_memory("demo", [TINY, replace(TINY, num_new_tokens=10_000)]),
            UsageError,
            "16 prompt and 10,000 new tokens",
            "--new-tokens",
        ),
        (lambda: estimate_memory("demo", revision="main"), UsageError, "no revision", "--revision"),
        (
            lambda: estimate_memory("deepseek-v3", [Scenario(quantization=Quantization.NF4)]),
            UsageError,
            "quantized already (fp8)",
            "--quantization",
        ),
        (lambda: estimate_memory("no-such-model"), InputError, "'no-such-model'", "Name a folder"),
        (
            lambda: estimate_memory("demo", [TINY], gpu="h200", trace=Path("no-such.parquet")),
            InputError,
            "no-such.parquet",
            "",
        ),
    ],
)
def test_what_can_not_be_estimated_is_refused_with_a_hint(
    ask: Callable[[], Any], kind: type[MoetoolError], error: str, hint: str
) -> None:
    with pytest.raises(kind) as caught:
        ask()
    assert error in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_an_engine_that_can_not_share_a_model_is_refused(tiny: str) -> None:
    served = ServingOptions(Engine.VLLM)
    with pytest.raises(UsageError, match="attention heads can't be shared evenly by 3 GPUs"):
        estimate_memory(tiny, [TINY], gpu="3x1GiB", serving=served)


def test_nothing_is_simulated_if_it_can_not_be_measured(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words: list[str] = []
    with pytest.raises(UsageError, match="no GPU that torch can use"):
        estimate_memory(tiny, [TINY], measure=True, on_progress=words.append)
    assert words == []


def test_a_trace_without_a_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match="no GPU was named"):
        estimate_memory("olmoe-1b-7b", trace=Path("trace.parquet"))
