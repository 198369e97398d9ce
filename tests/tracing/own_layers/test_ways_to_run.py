"""Layers under torch's ways to run them: recorded exactly, or refused in one sentence with a hint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from tests.tracing.own_layers.modules.layers import (
    WIDTH,
    Layer,
    LayersInLists,
    RouterParameter,
    Surrounded,
    Tensor,
)
from tests.tracing.own_layers.modules.models import VOCAB_SIZE
from tests.tracing.own_layers.recording import AnyLayer, assert_is, make, states
from tests.tracing.recording.operations.blocks import HIDDEN_SIZE, Gathered
from tests.tracing.recording.test_compiled_code import StackedBlock

# By how decisions are read: simply, by a search, by operations, and from what experts receive.
KINDS: dict[str, tuple[Callable[[], Any], int]] = {
    "simple": (Layer, WIDTH),
    "searched": (Surrounded, WIDTH),
    "operations": (Gathered, HIDDEN_SIZE),
    "received": (StackedBlock, HIDDEN_SIZE),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
EACH = pytest.mark.parametrize("what", KINDS)


class Model(nn.Module):
    def __init__(self, make_layer: Callable[[], Any], width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, width)
        self.moe = make_layer()
        self.run: Callable[..., Tensor] = lambda layer, x: layer(x)

    def forward(self, ids: Tensor) -> Tensor:
        return self.run(self.moe, self.embedding(ids))


def build(what: str) -> Any:
    return make(lambda: Model(*KINDS[what]))


def ids() -> Tensor:
    return torch.arange(14).view(2, 7)


def record(model: nn.Module, run: Callable[[nn.Module], Any] = lambda model: model(ids())) -> Any:
    with RoutingRecorder(model) as recorder:
        run(model)
    return recorder.to_frame()


def assert_refused(
    model: nn.Module, because: str, run: Callable[[nn.Module], Any] = lambda model: model(ids())
) -> None:
    with pytest.raises(UntraceableError, match=because):
        record(model, run)
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in model.modules())


@EACH
@pytest.mark.parametrize("is_reentrant", [False, True])
def test_what_a_checkpoint_runs_again_is_no_call(what: str, is_reentrant: bool) -> None:
    """Rows and gradients are those without a checkpoint and without a recorder."""

    def train(model: nn.Module) -> None:
        for _ in range(2):
            model(ids()).square().sum().backward()

    plain, recorded = build(what).train(), build(what).train()
    plain_frame = record(build(what).train(), train)
    recorded.run = partial(checkpoint, use_reentrant=is_reentrant)
    train(plain)
    frame = record(recorded, train)
    pd.testing.assert_frame_equal(frame, plain_frame)
    for one, other in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


@EACH
def test_inference_mode_changes_nothing(what: str) -> None:
    model = build(what)
    expected = record(model)
    with torch.inference_mode():
        pd.testing.assert_frame_equal(record(model), expected)


def test_weights_of_inference_mode_are_refused_where_gradients_are_needed() -> None:
    with torch.inference_mode():
        model = build("operations")
        assert_refused(model, "its parameters were made in inference mode")


@pytest.mark.parametrize("kind", [Layer, RouterParameter, LayersInLists])
def test_autocast_is_part_of_the_decision(kind: AnyLayer) -> None:
    layer, hidden = make(kind), states()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with RoutingRecorder(layer) as recorder:
            layer(hidden)
            layer(hidden.flip(1))
        for call, rows in zip(recorder.calls, (hidden, hidden.flip(1)), strict=True):
            table = layer.table(rows.reshape(-1, WIDTH))
            assert_is(call.layers[0], table, rtol=4 * torch.finfo(torch.bfloat16).eps)
        plain = layer.table(hidden.reshape(-1, WIDTH))
    assert not torch.equal(plain.nan_to_num(), layer.table(hidden.reshape(-1, WIDTH)).nan_to_num())


def test_autocast_is_part_of_a_decision_in_operations() -> None:
    layer = make(Gathered)
    hidden = torch.randn(2, 7, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with RoutingRecorder(layer) as recorder:
            layer(hidden)
        weights, chosen = layer.route(hidden.reshape(-1, HIDDEN_SIZE))
    recorded = recorder.calls[0].layers[0]
    order = weights.argsort(dim=1, descending=True, stable=True)
    assert recorded.experts.tolist() == chosen.gather(1, order).tolist()
    found = torch.from_numpy(recorded.weights)
    # The block multiplies outputs by what bfloat16 keeps of the weights.
    torch.testing.assert_close(found, weights.gather(1, order).bfloat16().float(), rtol=0, atol=0)


@EACH
def test_a_functional_call_is_a_call(what: str) -> None:
    def call(model: nn.Module) -> None:
        torch.func.functional_call(model, dict(model.named_parameters()), (ids(),))

    pd.testing.assert_frame_equal(record(build(what), call), record(build(what)))


def call_grad(model: nn.Module) -> None:
    def compute(parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(model, parameters, (ids(),))
        return output.sum()

    torch.func.grad(compute)(dict(model.named_parameters()))


def call_vmap(model: nn.Module) -> None:
    torch.vmap(lambda row: model(row[None]))(ids())


@EACH
@pytest.mark.parametrize("call", [call_grad, call_vmap])
def test_transforms_are_refused(what: str, call: Callable[[nn.Module], None]) -> None:
    assert_refused(build(what), "Model is called within a transform of torch.func", call)


def trace_with_jit(model: nn.Module) -> None:
    torch.jit.trace(model, ids(), check_trace=False)


def export(model: nn.Module) -> None:
    torch.export.export(model, (ids(),), strict=False)


@EACH
@pytest.mark.parametrize("call", [trace_with_jit, export])
def test_tracing_a_recorded_model_is_refused(what: str, call: Callable[[nn.Module], None]) -> None:
    assert_refused(build(what), "Model is being traced", call)


@pytest.fixture
def no_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@EACH
@pytest.mark.usefixtures("no_compiled_code")
def test_one_full_graph_is_refused(what: str) -> None:
    def call(model: nn.Module) -> None:
        with torch.no_grad():
            torch.compile(model, backend="eager", fullgraph=True)(ids())

    assert_refused(build(what), "Model can't be compiled as one full graph while", call)


@pytest.mark.usefixtures("no_compiled_code")
def test_other_errors_of_the_compiler_are_the_users() -> None:
    def call(model: nn.Module) -> None:
        def run(given: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return given

        torch.compile(run, backend="eager", fullgraph=True)(ids())
        model(ids())

    with pytest.raises(torch._dynamo.exc.Unsupported):
        record(build("simple"), call)


@EACH
def test_torchscript_is_refused(what: str) -> None:
    model = torch.jit.trace(build(what), ids(), check_trace=False)
    assert_refused(model, "TopLevelTracedModule is TorchScript, which runs past hooks")


@EACH
def test_a_block_in_torchscript_is_refused(what: str) -> None:
    model = build(what)
    hidden = torch.randn(2, 7, KINDS[what][1])
    model.moe = torch.jit.trace(model.moe, hidden, check_trace=False)
    with pytest.raises(UntraceableError, match=r"moe \(TopLevelTracedModule\) is TorchScript"):
        record(model)


@pytest.mark.parametrize("kind", [Layer, RouterParameter])
def test_experts_in_torchscript_are_refused(kind: AnyLayer) -> None:
    layer = make(kind)
    for number, expert in enumerate(layer.experts):
        layer.experts[number] = torch.jit.script(expert)
    with pytest.raises(UntraceableError, match=r"experts\.0 \(RecursiveScriptModule\) is Torch"):
        record(layer, lambda layer: layer(states()))


def test_copies_on_several_gpus_are_refused() -> None:
    model = nn.DataParallel(build("simple"))
    assert len(record(model)) == 28
    model.device_ids = [0, 1]
    assert_refused(model, "DataParallel divides each call among copies on 2 GPUs")


def test_a_capture_into_a_cuda_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert_refused(build("simple"), "Model is being captured into a CUDA graph")


def test_a_captured_block_is_refused() -> None:
    def make_graphed_callables(module: nn.Module) -> None:
        def replay(x: Tensor) -> Tensor:
            return x

        replay.__qualname__ = (
            "make_graphed_callables.<locals>.make_graphed_forward.<locals>.new_fwd"
        )
        module.forward = replay

    model = build("simple")
    make_graphed_callables(model.moe)
    assert_refused(model, r"moe \(Layer\) was captured into a CUDA graph")
