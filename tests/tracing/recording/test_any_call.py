"""Modules without token ids, under any signature, are recorded along their block's own token axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from tests.tracing.recording.separate.exact_blocks import HIDDEN_SIZE, TOP_K, Block, call

Tensor = torch.Tensor
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Classifier(nn.Module):
    """Adds a class token to the features of a batch, and runs one block a number of times."""

    def __init__(self, num_runs: int = 1) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, HIDDEN_SIZE))
        self.moe = Block()
        self.num_runs = num_runs

    def forward(self, batch: Mapping[str, Tensor], scale: float = 1.0) -> Tensor:
        features = scale * batch["features"]
        hidden = torch.cat([self.cls.expand(len(features), -1, -1), features], dim=1)
        for _ in range(self.num_runs):
            hidden = hidden + call(self.moe, hidden)
        return hidden[:, 0]


class Embedded(nn.Module):
    """A GPT's signature: `model(idx)`, with or without targets; the columns may come first."""

    def __init__(self, *, columns_first: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, HIDDEN_SIZE)
        self.moe = Block()
        self.columns_first = columns_first

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        del targets
        hidden: Tensor = self.embedding(idx)
        if self.columns_first:
            hidden = hidden.transpose(0, 1).contiguous()
        return call(self.moe, hidden)


def make(module: AnyModule) -> AnyModule:
    """Give a module distinct weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.6)
    return module.eval()


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def assert_rows(
    frame: pd.DataFrame, decision: tuple[Tensor, Tensor], shape: tuple[int, int]
) -> None:
    """Check that a run's rows are a block's last decision, for a batch of some shape."""
    ids, weights = decision
    rows = frame.sort_values(["batch_index", "position", "rank"])
    num_rows, num_columns = shape
    place = np.indices(shape).reshape(2, -1).repeat(TOP_K, axis=1)
    assert rows["batch_index"].tolist() == place[0].tolist()
    assert rows["position"].tolist() == place[1].tolist()
    assert rows["expert"].tolist() == ids.flatten().tolist()
    assert np.allclose(rows["weight"], weights.detach().flatten(), rtol=1e-6)
    assert len(rows) == num_rows * num_columns * TOP_K


@pytest.mark.parametrize(
    ("given", "shape"), [((2, 5), (2, 5)), ((7,), (1, 7)), ((2, 2, 3), (2, 6))]
)
def test_a_layer_alone_is_recorded_along_its_own_axes(
    given: tuple[int, ...], shape: tuple[int, int]
) -> None:
    layer = make(Block())
    with RoutingRecorder(layer) as recorder:
        layer(features(*given))
    frame = recorder.to_frame()
    assert layer.decision is not None
    assert_rows(frame, layer.decision, shape)
    assert set(frame["token_axis"]) == {"block"}
    assert set(frame["module"]) == {"experts"}
    assert recorder.find_router(recorder.layers[0]) == "gate"


def test_every_call_of_a_layer_in_a_loop_is_a_call() -> None:
    layer = make(Block())
    decisions = []
    with RoutingRecorder(layer) as recorder:
        for num_tokens in (3, 3, 4):
            layer(features(1, num_tokens))
            decisions.append(layer.decision)
    frame = recorder.to_frame()
    for number, decision in enumerate(decisions):
        assert decision is not None
        assert_rows(frame[frame["call"] == number], decision, (1, len(decision[0])))


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_class_token_counts_as_the_block_counts_it(wrap: Any) -> None:
    model = make(Classifier())
    with RoutingRecorder(wrap(model)) as recorder:
        recorder.model({"features": features(2, 4)}, scale=2.0)
    assert model.moe.decision is not None
    assert_rows(recorder.to_frame(), model.moe.decision, (2, 5))


def test_a_layer_that_runs_three_times_in_a_call_has_three_runs() -> None:
    model = make(Classifier(num_runs=3))
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model({"features": features(2, 4)})
    frame = recorder.to_frame()
    assert set(frame["call"]) == {0}
    hidden = torch.cat([model.cls.expand(2, -1, -1), features(2, 4)], dim=1)
    for run in range(3):
        with torch.no_grad():
            hidden = hidden + call(model.moe, hidden)
        assert model.moe.decision is not None
        assert_rows(frame[frame["run"] == run], model.moe.decision, (2, 5))


@pytest.mark.parametrize("with_targets", [False, True])
def test_token_ids_may_have_any_name(with_targets: bool) -> None:
    model = make(Embedded())
    idx = torch.arange(10).view(2, 5)
    with RoutingRecorder(model) as recorder:
        model(idx, targets=idx) if with_targets else model(idx)
    frame = recorder.to_frame()
    assert model.moe.decision is not None
    assert_rows(frame, model.moe.decision, (2, 5))
    assert set(frame["token_axis"]) == {"input"}


def test_columns_that_come_first_are_not_taken_for_rows() -> None:
    model = make(Embedded(columns_first=True))
    with RoutingRecorder(model) as recorder:
        model(torch.arange(10).view(2, 5))
    frame = recorder.to_frame()
    assert model.moe.decision is not None
    assert_rows(frame, model.moe.decision, (5, 2))
    assert set(frame["token_axis"]) == {"block"}


def test_the_pads_of_features_are_left_out() -> None:
    class Masked(Classifier):
        def forward(self, features: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
            del attention_mask
            return call(self.moe, features)

    model = make(Masked())
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with RoutingRecorder(model) as recorder:
        model(features(2, 3), mask)
    frame = recorder.to_frame()
    assert sorted(zip(frame["batch_index"], frame["position"], strict=True)) == sorted(
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] * TOP_K
    )
    assert model.moe.decision is not None
    assert frame.loc[frame["rank"] == 0, "expert"].tolist() == model.moe.decision[0][1:, 0].tolist()

    with (
        pytest.raises(UntraceableError, match="Can't tell pads from tokens: moe received"),
        RoutingRecorder(model),
    ):
        model(features(2, 3), torch.tensor([[0, 1], [1, 1]]))


def test_a_call_that_fails_in_the_middle_leaves_no_hooks_and_no_rows() -> None:
    model = make(Classifier())
    with (
        pytest.raises(KeyError, match="features"),
        RoutingRecorder(model) as recorder,
    ):
        model({"pixels": features(2, 4)})
    assert recorder.to_frame().empty
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
