"""The recorder reads decisions instead of recomputing them, and survives exceptions.

That its decisions are those of the experts is proven for every family in tests/families.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.received import ReceivedWatch
from tests.tiny_models import build_model

NUM_ROWS, NUM_COLUMNS = 2, 7


def random_inputs(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (NUM_ROWS, NUM_COLUMNS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def run(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**random_inputs()).logits
    return logits


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_recomputing_top_k_from_the_logits_would_have_been_wrong() -> None:
    """DeepSeek-V3 does not choose by its logits alone, which is why nothing is recomputed."""
    with RoutingRecorder(build_model("deepseek_v3"), keep_scores=True) as recorder:
        run(recorder.model)
    (call,) = recorder.calls
    layer = call.layers[0]
    assert layer.scores is not None
    recomputed = torch.from_numpy(layer.scores).topk(3).indices.sort().values
    recorded = torch.from_numpy(layer.experts).long().sort().values
    assert not torch.equal(recomputed, recorded)


def test_no_hook_stays_behind_after_an_exception() -> None:
    model = build_model("mixtral")
    before = count_hooks(model)
    with pytest.raises(RuntimeError, match=r"^[1-9]\d* hooks"), RoutingRecorder(model):
        raise RuntimeError(f"{count_hooks(model) - before} hooks")
    assert count_hooks(model) == before


def test_an_exception_within_the_forward_leaves_no_half_call() -> None:
    model = build_model("mixtral")

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    with RoutingRecorder(model) as recorder:
        handle = model.get_submodule("model.layers.2.mlp").register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            run(model)
        handle.remove()
        run(model)
    assert [call.call for call in recorder.calls] == [0]
    assert len(recorder.calls[0].position) == NUM_ROWS * NUM_COLUMNS


def test_a_recorder_that_can_not_be_entered_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("mixtral")
    install = ReceivedWatch.install
    calls: list[object] = []

    def fail_at_the_third(watch: ReceivedWatch, *args: Any) -> None:
        calls.append(watch)
        install(watch, *args)
        if len(calls) == 3:
            raise UntraceableError("on purpose", hint="")

    monkeypatch.setattr(ReceivedWatch, "install", fail_at_the_third)
    with pytest.raises(UntraceableError, match="on purpose"), RoutingRecorder(model):
        raise AssertionError("it was entered")
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
