"""Compiled code runs past hooks: it is refused, or compiled again with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pandas as pd
import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from tests.tiny_models import build_model
from tests.tracing.recording.separate.exact_blocks import Block
from tests.tracing.recording.separate.models import Model, build
from tests.tracing.recording.separate.models import tokens as embedded_tokens

# Of a small model, because those of transformers take long to compile.
HIDDEN_SIZE, NUM_EXPERTS, TOP_K = 16, 6, 2


def tokens() -> torch.Tensor:
    return torch.arange(3, 17).view(2, 7)


def record(model: nn.Module, *, run: Callable[..., Any] | None = None) -> pd.DataFrame:
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        (model if run is None else run)(input_ids=tokens())
    return recorder.to_frame()


class TopKRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(HIDDEN_SIZE, NUM_EXPERTS)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = self.layer(rows)
        weights, ids = scores.softmax(dim=-1).topk(TOP_K, dim=-1)
        return scores, weights, ids


class StackedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts = NUM_EXPERTS
        self.up = nn.Parameter(torch.randn(NUM_EXPERTS, HIDDEN_SIZE, 24))
        self.down = nn.Parameter(torch.randn(NUM_EXPERTS, 24, HIDDEN_SIZE))

    def forward(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        inner = torch.einsum("th,tkhi->tki", rows, self.up[ids]).relu()
        return torch.einsum("tki,tkih,tk->th", inner, self.down[ids], weights)


class StackedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = TopKRouter()
        self.experts = StackedExperts()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.flatten(0, -2)
        _, weights, ids = self.gate(rows)
        output = cast(torch.Tensor, self.experts(rows, ids, weights))
        return hidden_states + output.view_as(hidden_states)


class StackedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, HIDDEN_SIZE)
        self.norm = nn.LayerNorm(HIDDEN_SIZE)
        self.layers = nn.ModuleList(StackedBlock() for _ in range(2))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm(self.embedding(input_ids))
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return cast(torch.Tensor, hidden_states)


def build_stacked() -> StackedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return StackedModel().eval()


@pytest.fixture
def no_compiled_code() -> Iterator[None]:
    """Forget code that was compiled for a similar model, which would be used again."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compile_it(function: Any) -> Any:
    return torch.compile(function, backend="eager")


def wrap(model: StackedModel) -> nn.Module:
    return cast(nn.Module, compile_it(model))


def compile_in_place(model: StackedModel) -> nn.Module:
    model.compile(backend="eager")
    return model


def compile_a_layer(model: StackedModel) -> nn.Module:
    model.layers[1].compile(backend="eager")
    return model


def wrap_a_layer(model: StackedModel) -> nn.Module:
    model.layers[1] = compile_it(model.layers[1])
    return model


def compile_the_router(model: StackedModel) -> nn.Module:
    model.layers[1].get_submodule("gate").compile(backend="eager")
    return model


def compile_the_forward(model: StackedModel) -> nn.Module:
    model.forward = compile_it(model.forward)  # type: ignore[method-assign]
    return model


def compile_a_layers_forward(model: StackedModel) -> nn.Module:
    model.layers[1].forward = compile_it(model.layers[1].forward)
    return model


COMPILED: dict[str, tuple[Callable[[StackedModel], nn.Module], str]] = {
    "wrapped": (wrap, "OptimizedModule was compiled"),
    "in place": (compile_in_place, "StackedModel was compiled"),
    "a layer": (compile_a_layer, r"layers.1 \(StackedBlock\) was compiled"),
    "a wrapped layer": (wrap_a_layer, r"layers.1 \(OptimizedModule\) was compiled"),
    "a router": (compile_the_router, r"layers.1.gate \(TopKRouter\) was compiled"),
    "the forward": (compile_the_forward, "StackedModel was compiled"),
    "a layer's forward": (compile_a_layers_forward, r"layers.1 \(StackedBlock\) was compiled"),
}


@pytest.mark.parametrize("what", COMPILED)
def test_a_model_compiled_before_is_refused_on_entering(what: str) -> None:
    spoil, message = COMPILED[what]
    model = spoil(build_stacked())
    with pytest.raises(UntraceableError, match=message) as caught, RoutingRecorder(model):
        raise AssertionError("it was entered")
    assert caught.value.hint.startswith("Enter the recorder first")


@pytest.mark.usefixtures("no_compiled_code")
@pytest.mark.parametrize("what", COMPILED)
def test_a_model_compiled_within_has_the_same_rows(what: str) -> None:
    expected = record(build_stacked())
    model = build_stacked()
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        compiled = COMPILED[what][0](model)
        compiled(input_ids=tokens())
        compiled(input_ids=tokens())
    rows = recorder.to_frame()
    for call in (0, 1):
        same = rows[rows["call"] == call].assign(call=0).reset_index(drop=True)
        pd.testing.assert_frame_equal(same, expected)
    with torch.inference_mode():
        torch.testing.assert_close(
            compiled(input_ids=tokens()), build_stacked()(input_ids=tokens())
        )
    assert len(recorder.calls) == 2  # the hooks are gone, also from the compiled code


@pytest.mark.usefixtures("no_compiled_code")
def test_separate_experts_compiled_within_have_the_same_rows() -> None:
    expected = record_separate(build(Block))
    model = build(Block)
    rows = record_separate(model, prepare=lambda: model.compile(backend="eager"))
    pd.testing.assert_frame_equal(rows, expected)


def record_separate(model: Model, *, prepare: Callable[[], object] = lambda: None) -> pd.DataFrame:
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        prepare()
        model(embedded_tokens())
    return recorder.to_frame()


@pytest.mark.usefixtures("no_compiled_code")
def test_compiled_code_of_a_like_model_is_not_used_in_silence() -> None:
    """torch caches compiled code by function, not by model, and does not check for hooks."""
    first, second = (build_model("mixtral", num_hidden_layers=1) for _ in range(2))
    with torch.inference_mode():
        compile_it(first)(input_ids=tokens())
    with pytest.raises(UntraceableError, match="ran without being seen") as caught:
        record(second, run=compile_it(second))
    assert "torch.compiler.reset()" in caught.value.hint


@pytest.mark.usefixtures("no_compiled_code")
def test_compiled_code_that_never_calls_the_model_is_not_an_empty_record() -> None:
    model = build_stacked()

    def step(input_ids: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, model(input_ids=input_ids))

    compiled = compile_it(step)
    with torch.inference_mode():
        compiled(tokens())
    with pytest.raises(UntraceableError, match="No call of StackedModel was seen"):
        record(model, run=lambda *, input_ids: compiled(input_ids))


def test_what_is_compiled_beside_the_routed_layers_does_no_harm() -> None:
    model = build_stacked()
    model.norm.compile(backend="eager")
    assert len(record(model)) == 14 * TOP_K * 2
