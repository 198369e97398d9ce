"""Blocks whose experts are separate modules: traced exactly or refused, never wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.separate.stand_ins import StandIn
from tests.families.tiny.dense_reference import apply_decisions
from tests.families.tiny.gemm_audit import GemmAudit
from tests.tracing.recording.separate.exact_blocks import (
    EXACT,
    HIDDEN_SIZE,
    MORE_PRODUCTS,
    TOP_K,
    Block,
    CallsItsListOfExperts,
    DeepseekOfRemoteCode,
    DenseLoop,
    DenseLoopOverExpertsInUse,
    MixtralOfTransformers4,
    NamedExperts,
    ScaledAndShared,
    WithCapacity,
    WithDropoutOnTheSum,
    WithRouterOfItsOwn,
    WithUnusedExperts,
    call,
)
from tests.tracing.recording.separate.models import (
    Layer,
    Model,
    as_table,
    assert_decision_is_the_blocks,
    build,
    record,
    run,
    tokens,
)
from tests.tracing.recording.separate.refused_blocks import EXACT_FOR_ONE_TOKEN, REFUSED
from tests.tracing.recording.separate.searched_blocks import SEARCHED, RoutesPastItsRouter

TOLERANCE = 1e-5


ALL_EXACT = {**EXACT, **SEARCHED}


@pytest.fixture(params=EXACT)
def make_exact(request: pytest.FixtureRequest) -> Callable[[], Block]:
    return EXACT[request.param]


@pytest.mark.parametrize("shape", [(2, 9), (1, 1)])
@pytest.mark.parametrize("what", ALL_EXACT)
def test_the_decision_is_the_one_that_the_block_made(what: str, shape: tuple[int, int]) -> None:
    model = build(ALL_EXACT[what])
    recorded = record(model, tokens(*shape))
    assert_decision_is_the_blocks(recorded, model.mlp)


@pytest.mark.parametrize("make", [Block, DeepseekOfRemoteCode, DenseLoop, ScaledAndShared])
def test_hidden_states_may_be_a_row_a_token(make: Callable[[], Block]) -> None:
    model = build(make, is_flat=True)
    recorded = record(model, tokens())
    assert_decision_is_the_blocks(recorded, model.mlp)


def test_the_decision_reproduces_the_blocks_output(make_exact: Callable[[], Block]) -> None:
    model = build(make_exact)
    seen: dict[str, torch.Tensor] = {}

    def keep(_block: nn.Module, args: tuple[torch.Tensor], output: Any) -> None:
        seen["rows"] = args[0].flatten(0, -2)
        seen["output"] = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)

    model.mlp.register_forward_hook(keep)
    recorded = record(model, tokens())
    total = apply_decisions(model.mlp.experts, seen["rows"], recorded.ids, recorded.weights)
    with torch.no_grad():
        expected = model.mlp.finish(seen["rows"], total.float())
    assert (seen["output"] - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("what", [what for what in EXACT if what not in MORE_PRODUCTS])
def test_the_decision_is_what_met_in_the_matrix_products(what: str) -> None:
    model = build(EXACT[what])
    with GemmAudit(model, [Layer()]) as audit:
        recorded = record(model, tokens())
    pairs = Counter(
        (token, expert)
        for token, row in enumerate(recorded.ids.tolist())
        for expert in row
        if expert >= 0
    )
    assert audit.pairs(Layer()) == pairs


@pytest.mark.parametrize(
    ("what", "is_training"),
    [(what, is_training) for what in ALL_EXACT for is_training in (False, True)],
)
def test_the_recorder_leaves_no_trace(what: str, is_training: bool) -> None:
    """Logits, random numbers, hooks, modules and counters are the same as without it."""
    plain, watched = (build(ALL_EXACT[what]).train(is_training) for _ in range(2))
    outputs, states = [], []
    modules = list(watched.modules())

    def go_watched(model: Model, input_ids: torch.Tensor) -> torch.Tensor:
        # Otherwise experts with dropout are refused in training.
        return record(model, input_ids, allow_inexact=is_training).output

    for model, go in ((plain, run), (watched, go_watched)):
        torch.manual_seed(11)
        outputs.append(go(model, tokens()))
        states.append(torch.get_rng_state())
    assert torch.equal(*outputs)
    assert torch.equal(*states)
    assert list(watched.modules()) == modules
    assert count_hooks(watched) == 0
    assert vars(watched.mlp).keys() == vars(plain.mlp).keys()
    for (name, left), (_, right) in zip(
        plain.state_dict().items(), watched.state_dict().items(), strict=True
    ):
        assert torch.equal(left, right), name
    assert getattr(watched.mlp, "num_calls", 1) == getattr(plain.mlp, "num_calls", 1) == 1


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_hooks_of_others_see_the_models_own_call_alone() -> None:
    model = build(CallsItsListOfExperts)
    calls: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
    run(model, tokens())
    expected = sorted(calls)
    calls.clear()
    record(model, tokens())
    assert sorted(calls) == expected


def test_dropped_tokens_and_unused_experts_are_among_what_was_tried() -> None:
    """The blocks have these cases, so that the tests above prove something about them."""
    dropped = record(build(WithCapacity), tokens()).ids
    assert (dropped == -1).any(dim=1).any()
    assert (dropped == -1).all(dim=1).any()
    assert set(record(build(WithUnusedExperts), tokens()).ids.flatten().tolist()) <= set(range(4))
    most = record(build(EXACT["more experts than hidden states are wide"]), tokens()).ids
    assert most.max() > 2 * HIDDEN_SIZE


@pytest.mark.parametrize("make", [Block, WithCapacity, DenseLoopOverExpertsInUse, NamedExperts])
def test_equal_tokens_are_told_apart(make: Callable[[], Block]) -> None:
    model = build(make)
    recorded = record(model, torch.tensor([[5, 5, 7, 5, 7, 5, 5, 9]]))
    assert_decision_is_the_blocks(recorded, model.mlp)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [Block, MixtralOfTransformers4, DenseLoop, ScaledAndShared])
def test_half_precision_has_the_blocks_decision_too(
    make: Callable[[], Block], dtype: torch.dtype
) -> None:
    model = build(make).to(dtype)
    # More tokens than bfloat16 has consecutive whole numbers.
    input_ids = tokens(1, 50).repeat(7, 1)
    recorded = record(model, input_ids)
    assert model.mlp.decision is not None
    ids, weights = model.mlp.decision
    num_experts = model.mlp.num_experts
    torch.testing.assert_close(
        as_table(recorded.ids, recorded.weights, num_experts=num_experts),
        as_table(ids, weights, num_experts=num_experts),
        equal_nan=True,
        # The scaled block multiplies its sum, which adds a rounding.
        rtol=torch.finfo(dtype).eps if make is ScaledAndShared else 0,
        atol=0,
    )


@pytest.mark.parametrize(
    ("make", "router"), [(Block, "mlp.gate"), (DeepseekOfRemoteCode, None), (DenseLoop, "mlp.gate")]
)
def test_the_router_and_its_scores_are_found_where_it_returns_them(
    make: Callable[[], Block], router: str | None
) -> None:
    model = build(make)
    recorded = record(model, tokens(), keep_scores=True)
    assert recorded.router == router
    if router is None:
        assert recorded.scores is None
    else:
        assert recorded.scores is not None
        with torch.no_grad():
            scores = call(model.mlp.gate, call(model.embedding, tokens()).flatten(0, 1))
        assert torch.equal(recorded.scores, scores)


@pytest.mark.parametrize(
    ("what", "shape"),
    [
        (what, shape)
        for shape in ((2, 9), (1, 1))
        for what in REFUSED
        if shape != (1, 1) or what not in EXACT_FOR_ONE_TOKEN
    ],
)
def test_a_block_that_can_not_be_read_is_refused_and_left_as_it_was(
    what: str, shape: tuple[int, int]
) -> None:
    make, reason = REFUSED[what]
    model = build(make)
    modules, plain = list(model.modules()), run(model, tokens(*shape))
    with pytest.raises(UntraceableError, match=f"Can't tell what mlp routes: {reason}"):
        record(model, tokens(*shape))
    assert list(model.modules()) == modules
    assert count_hooks(model) == 0
    assert torch.equal(run(model, tokens(*shape)), plain)


@pytest.mark.parametrize("kind", [WithRouterOfItsOwn, WithDropoutOnTheSum])
def test_dropout_is_drawn_again_in_training(kind: Callable[[], Block]) -> None:
    model = build(kind).train()
    assert_decision_is_the_blocks(record(model, tokens()), model.mlp)


@pytest.mark.parametrize("make", [Block, RoutesPastItsRouter, DenseLoop])
def test_equal_tokens_have_the_weights_of_their_own_places(make: Callable[[], Block]) -> None:
    """A block may treat equal hidden states differently, by their place."""

    class ByPlace(make):  # type: ignore[misc, valid-type]
        def score(self, rows: torch.Tensor) -> torch.Tensor:
            place = torch.arange(len(rows) * self.num_experts).view(len(rows), -1)
            scores: torch.Tensor = super().score(rows)
            return scores + (place * 7919 % 13) / 13

    model = build(ByPlace)
    recorded = record(model, torch.tensor([[5, 5, 7, 5, 7, 5, 5, 9]]))
    assert_decision_is_the_blocks(recorded, model.mlp)
    assert len(set(map(tuple, recorded.ids[[0, 1, 3, 5, 6]].tolist()))) > 1


def test_an_exception_within_an_expert_is_the_users_and_leaves_nothing_behind() -> None:
    model = build(Block)
    modules = list(model.modules())

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    handle = model.mlp.experts[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        record(model, tokens())
    handle.remove()
    assert list(model.modules()) == modules
    assert not any(isinstance(module, StandIn) for module in model.modules())
    assert count_hooks(model) == 0
    assert_decision_is_the_blocks(record(model, tokens()), model.mlp)


def test_a_call_that_failed_leaves_nothing_for_the_next() -> None:
    model = build(MixtralOfTransformers4)
    with RoutingRecorder(model) as recorder, torch.no_grad():
        handle = model.head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens())
        handle.remove()
        model(tokens())
    assert [call.call for call in recorder.calls] == [0]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("make", [MixtralOfTransformers4, DeepseekOfRemoteCode])
def test_offloaded_experts_have_the_same_decisions(
    make: Callable[[], Block], offload: str, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    plain = record(build(make), tokens())
    model = build(make)
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=device)
    assert all(parameter.is_meta for parameter in model.mlp.experts.parameters())
    recorded = record(model, tokens())
    assert torch.equal(recorded.ids, plain.ids)
    assert torch.equal(recorded.weights, plain.weights)
    assert torch.equal(recorded.output, plain.output)
    assert all(parameter.is_meta for parameter in model.mlp.experts.parameters())


def test_recording_twice_at_once_gives_the_same_decisions() -> None:
    model = build(DeepseekOfRemoteCode)
    with RoutingRecorder(model) as outer, RoutingRecorder(model) as inner, torch.no_grad():
        model(tokens())
    outer_rows, inner_rows = outer.to_frame(), inner.to_frame()
    assert len(outer_rows) == tokens().numel() * TOP_K
    assert outer_rows.equals(inner_rows)


def test_gradients_pass_as_without_the_recorder() -> None:
    gradients = []
    for is_recorded in (False, True):
        model = build(DeepseekOfRemoteCode).train()
        with RoutingRecorder(model) if is_recorded else torch.enable_grad():
            model(tokens()).square().mean().backward()
        gradients.append(model.mlp.gate.get_parameter("weight").grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])
