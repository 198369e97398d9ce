"""Saliency of models that people run: pads don't count, and experts that do more are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moetool import RoutingRecorder, read_trace, trace_model
from moetool.errors import UntraceableError, UsageError
from moetool.tracing.recording.saliency.sums import SaliencySums
from tests.families.tiny.models import build_family
from tests.tracing.recording.separate.exact_blocks import MixtralOfTransformers4
from tests.tracing.recording.separate.models import build, tokens


def measure(model: nn.Module, *calls: dict[str, Any]) -> list[SaliencySums]:
    with torch.inference_mode(), RoutingRecorder(model, keep_saliency=True) as recorder:
        for inputs in calls:
            model(**inputs)
    return list(recorder.saliency.values())


def assert_same(first: list[SaliencySums], second: list[SaliencySums]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.num_tokens == other.num_tokens
        assert one.frequency.tolist() == other.frequency.tolist()
        for field in ("norms", "weighted_norms", "weights", "largest"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-4)


def test_pads_do_not_count_and_calls_add_up() -> None:
    model = build_family("qwen3_moe")
    long, short = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[11, 12, 13]])
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
    }
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert_same(measure(model, padded), measure(model, {"input_ids": long}, {"input_ids": short}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_as_it_ran(dtype: torch.dtype) -> None:
    model = build_family("mixtral")
    inputs = {"input_ids": torch.arange(5, 45).view(2, 20)}
    exact = measure(model, inputs)
    half: Any = model.to
    for one, other in zip(measure(half(dtype), inputs), exact, strict=True):
        total, expected = one.weighted_norms.sum(), other.weighted_norms.sum()
        assert total == pytest.approx(expected, rel=0.05)


def test_experts_that_change_the_sum_are_refused() -> None:
    model = build_family("mixtral")
    experts = model.get_submodule("model.layers.1.mlp.experts")
    forward = experts.forward
    experts.forward = lambda states, ids, weights: forward(states, ids, weights**2)
    with pytest.raises(UntraceableError, match=r"saliency of model\.layers\.1.*added up by weight"):
        measure(model, {"input_ids": torch.arange(5, 15)[None]})


def test_separate_experts_are_measured_one_by_one() -> None:
    model = build(MixtralOfTransformers4)
    with torch.no_grad(), RoutingRecorder(model, keep_saliency=True) as recorder:
        model(tokens())
    ((layer,),) = (call.layers for call in recorder.calls)
    (sums,) = recorder.saliency.values()
    hidden = model.embedding(tokens()).flatten(0, 1)
    expected = SaliencySums.empty(layer.layer.num_experts)
    for expert, module in enumerate(model.mlp.experts):
        rows, slots = np.nonzero(layer.experts == expert)
        norms = module(hidden[torch.from_numpy(rows)]).detach().double().norm(dim=1).numpy()
        expected.frequency[expert] = len(rows)
        expected.norms[expert] = norms.sum()
        expected.weighted_norms[expert] = (norms * layer.weights[rows, slots]).sum()
    assert sums.frequency.tolist() == expected.frequency.tolist()
    np.testing.assert_allclose(sums.norms, expected.norms, rtol=1e-5)
    np.testing.assert_allclose(sums.weighted_norms, expected.weighted_norms, rtol=1e-5)


def test_the_file_agrees_with_the_trace_next_to_it(tmp_path: Path) -> None:
    output = tmp_path / "trace.parquet"
    prompts = ["def f(x):", "one two three four", "Guten Tag"]
    trace_model("demo", prompts, output=output, saliency=True, max_new_tokens=3)
    data = torch.load(tmp_path / "trace.saliency.pt", weights_only=True)
    frame = read_trace(output)
    assert list(data) == list(range(6))
    for layer, values in data.items():
        rows = frame[frame["layer"] == layer]
        counts = np.bincount(rows["expert"], minlength=8)
        mass = np.bincount(rows["expert"], weights=rows["weight"], minlength=8)
        assert values["expert_frequency"].tolist() == counts.tolist()
        assert values["total_tokens"].item() == len(rows) // 2
        np.testing.assert_allclose(values["weighted_expert_frequency_sum"], mass, rtol=1e-6)
        np.testing.assert_allclose(
            values["reap"] * values["expert_frequency"], values["weighted_ean_sum"], rtol=1e-5
        )
        np.testing.assert_allclose(
            values["ean_mean"] * values["expert_frequency"], values["ean_sum"], rtol=1e-5
        )
        pairs = counts[:, None] + counts[None]
        assert values["pairwise_expert_frequency"].tolist() == pairs.tolist()


def test_saliency_needs_an_output() -> None:
    with pytest.raises(UsageError, match="must go to a file"):
        trace_model("demo", ["a"], saliency=True)
