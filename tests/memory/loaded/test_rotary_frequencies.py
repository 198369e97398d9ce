"""Frequencies of rotary embeddings on the meta device, laid out as they are without a mode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from transformers import LlamaConfig, modeling_rope_utils

from moetool.memory.loaded.rotary_frequencies import laying_out_frequencies_once
from moetool.simulation.meta.meta_kernels import MetaKernels

FUNCTIONS: dict[str, Any] = modeling_rope_utils.ROPE_INIT_FUNCTIONS
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    },
}


def compute(kind: str) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=16,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **SETTINGS[kind]},
    )
    with torch.device("meta"):
        result: tuple[torch.Tensor, float] = FUNCTIONS[kind](config, None)
    return result


@pytest.mark.parametrize("kind", SETTINGS)
def test_each_call_returns_a_tensor_like_that_of_the_function_itself(kind: str) -> None:
    alone, factor = compute(kind)
    with laying_out_frequencies_once():
        calls = [compute(kind) for _ in range(2)]
    for frequencies, found in calls:
        assert found == factor
        assert type(frequencies) is type(alone)
        assert (frequencies.shape, frequencies.stride()) == (alone.shape, alone.stride())
        assert (frequencies.dtype, frequencies.device) == (alone.dtype, alone.device)
        assert not frequencies.requires_grad
    first, second = (frequencies.untyped_storage()._cdata for frequencies, _ in calls)
    assert first != second


def test_the_functions_are_themselves_again_even_those_that_were_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FUNCTIONS, "test", _get_current_dispatch_mode)
    before = dict(FUNCTIONS)
    with laying_out_frequencies_once():
        kept = FUNCTIONS["test"]
        assert isinstance(kept(), MetaKernels)
    assert before == FUNCTIONS
    assert kept() is None


def test_other_threads_compute_without_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "test", _get_current_dispatch_mode)
    with laying_out_frequencies_once(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(FUNCTIONS["test"]).result() is None
