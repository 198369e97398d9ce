"""Calls that arrive later, in another thread, as those of a GPU do.

The CPU stands for a GPU: torch's streams and events of the CPU do nothing, so copies are there at
once, but they take the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from moetool import RoutingRecorder, trace_model
from moetool.anatomy.routing.moe_layers import find_moe_layers
from moetool.catalogue.names import demo_folder
from moetool.errors import UntraceableError
from moetool.tracing.recording.transfer import host_copies, shipment
from tests.tiny_models import build_model

EXPERTS = "model.layers.1.mlp.experts"
LAST_EXPERTS = "model.layers.2.mlp.experts"


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take the CPU for a device that goes on computing while it copies."""
    monkeypatch.setattr(host_copies, "_WITH_STREAMS", ("cpu",))
    monkeypatch.setattr(host_copies, "allocate_pinned", torch.empty_like)
    return monkeypatch


def make_batches() -> list[dict[str, torch.Tensor]]:
    """Return batches of several shapes, some of them with pads."""
    generator = torch.Generator().manual_seed(4)
    batches = []
    for num_rows, num_columns, num_pads in ((3, 5, 2), (1, 1, 0), (3, 5, 0), (2, 9, 8), (1, 30, 1)):
        ids = torch.randint(3, 250, (num_rows, num_columns), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, num_columns - num_pads :] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def record(model: nn.Module, **options: Any) -> tuple[pd.DataFrame, list[Any]]:
    with RoutingRecorder(model, **options) as recorder, torch.inference_mode():
        for batch in make_batches():
            model(**batch)
    return recorder.to_frame(), recorder.calls


def write(model: PreTrainedModel, **options: Any) -> pd.DataFrame:
    generate: Any = model.generate
    with RoutingRecorder(model) as recorder:
        generate(**make_batches()[2], max_new_tokens=6, do_sample=False, **options)
    return recorder.to_frame()


@pytest.mark.parametrize("num_slots", [0, 16, 8192])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "llama4_text"])
def test_calls_are_the_same_however_many_are_sent_together(
    family: str, num_slots: int, as_gpu: pytest.MonkeyPatch
) -> None:
    model = build_model(family)
    with as_gpu.context() as at_once:
        at_once.setattr(host_copies, "_WITH_STREAMS", ())
        expected, _ = record(model)
    as_gpu.setattr(shipment, "_SLOTS_PER_SHIPMENT", num_slots)
    frame, calls = record(model)
    pd.testing.assert_frame_equal(frame, expected)
    assert [call.call for call in calls] == list(range(5))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generated_tokens_are_the_same(cache: str, as_gpu: pytest.MonkeyPatch) -> None:
    model = build_model("mixtral")
    with as_gpu.context() as at_once:
        at_once.setattr(host_copies, "_WITH_STREAMS", ())
        expected = write(model, cache_implementation=cache)
    pd.testing.assert_frame_equal(write(model, cache_implementation=cache), expected)


@pytest.mark.usefixtures("as_gpu")
def test_scores_belong_to_their_tokens() -> None:
    _, calls = record(build_model("mixtral"), keep_scores=True)
    for call in calls:
        for layer in call.layers:
            probabilities = torch.tensor(layer.scores).softmax(dim=1)
            largest, _ = probabilities.topk(2).indices.sort(dim=1)
            assert np.array_equal(np.sort(layer.experts, axis=1), largest)


@pytest.mark.usefixtures("as_gpu")
def test_a_call_that_is_no_decision_is_refused_when_it_arrives() -> None:
    model = build_model("mixtral")

    def choose_twice(_experts: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, ids, weights = args
        return hidden, ids[:, :1].expand_as(ids).contiguous(), weights

    experts = model.get_submodule(EXPERTS)
    handle = experts.register_forward_pre_hook(choose_twice)
    try:
        with (
            pytest.raises(UntraceableError, match=f"{EXPERTS} .* names an expert twice"),
            RoutingRecorder(model),
            torch.inference_mode(),
        ):
            model(**make_batches()[0])
    finally:
        handle.remove()


@pytest.mark.usefixtures("as_gpu")
def test_pads_may_hold_anything() -> None:
    model = build_model("mixtral")
    batch = make_batches()[0]
    is_pad = batch["attention_mask"].flatten() == 0

    def spoil(_experts: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, ids, weights = args
        return hidden, ids, weights.masked_fill(is_pad[:, None], torch.nan)

    # No layer follows to which attention would carry what is not a number.
    handle = model.get_submodule(LAST_EXPERTS).register_forward_pre_hook(spoil)
    try:
        with RoutingRecorder(model) as recorder, torch.inference_mode():
            model(**batch)
    finally:
        handle.remove()
    (call,) = recorder.calls
    assert all(np.isfinite(layer.weights).all() for layer in call.layers)
    assert len(call.position) == int(batch["attention_mask"].sum())


@pytest.mark.usefixtures("as_gpu")
def test_a_mask_that_is_none_is_refused_when_it_arrives() -> None:
    model = build_model("mixtral")
    batch = make_batches()[0]
    recorder = RoutingRecorder(model)
    recorder.__enter__()
    with torch.inference_mode():
        model(**{**batch, "attention_mask": 2 * batch["attention_mask"]})
    with pytest.raises(UntraceableError, match="the attention mask holds 2"):
        recorder.__exit__(None, None, None)


@settings(deadline=None, max_examples=60)
@given(
    bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40),
    slots=st.none() | st.lists(st.integers(0, 0), min_size=1, max_size=3),
)
def test_bfloat16_becomes_float32_without_a_change(
    bits: list[int], slots: list[int] | None
) -> None:
    from moetool.tracing.recording.transfer.sent import _keep

    values = torch.tensor(np.array(bits, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    stack = values.view(1, 1, -1)
    chosen = None if slots is None else np.array(slots)
    kept = _keep(host_copies.HostCopy(stack), chosen)
    expected = stack if slots is None else stack[:, slots]
    assert kept.dtype == np.float32
    assert np.array_equal(kept, expected.float().numpy(), equal_nan=True)


def test_a_whole_run_writes_the_same_trace(as_gpu: pytest.MonkeyPatch) -> None:
    """The threads that make rows wait for calls that are still on their way."""
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    model = build_model("qwen3_moe", vocab_size=len(tokenizer))
    assert len(find_moe_layers(model)) > 1
    prompts = [f"prompt {number} " * (1 + number % 7) for number in range(40)]
    options: dict[str, Any] = {"batch_size": 4, "probabilities": True, "max_new_tokens": 3}
    with as_gpu.context() as at_once:
        at_once.setattr(host_copies, "_WITH_STREAMS", ())
        expected = trace_model((model, tokenizer), prompts, **options).to_frame()
    as_gpu.setattr(shipment, "_SLOTS_PER_SHIPMENT", 64)
    traced = trace_model((model, tokenizer), prompts, **options).to_frame()
    pd.testing.assert_frame_equal(traced, expected)
