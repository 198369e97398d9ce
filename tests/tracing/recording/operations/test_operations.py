"""Experts in any arrangement: what is recorded is what the oracle finds, or the block is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import UntraceableError
from tests.tracing.oracle import find_difference, fit_weights
from tests.tracing.recording.operations.blocks import (
    EXACT,
    HIDDEN_SIZE,
    NUM_EXPERTS,
    DispatchAndCombine,
    ExpertChoice,
    Fused,
    Gathered,
    GroupedProducts,
    WithDropout,
    WithNoise,
    call,
)
from tests.tracing.recording.operations.refused_blocks import REFUSED

VOCAB_SIZE = 64
# Weights are kept in float32. Products in bfloat16 have an output of eight bits.
TOLERANCE, TOLERANCE_OF_HALF = 1e-6, 0.02


class Model(nn.Module):
    def __init__(self, block: Fused) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.moe = block
        self.head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return call(self.head, call(self.moe, call(self.embedding, input_ids)))


def build(make: Callable[[], Fused], *, dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(1)
    return Model(make()).to(dtype).eval()


def tokens() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(VOCAB_SIZE, (2, 9))


def record(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the recorded ids and weights."""
    torch.manual_seed(3)
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(tokens())
    (recorded,) = recorder.calls[0].layers
    assert recorded.layer.rule is RoutingRule.OPERATIONS
    return torch.from_numpy(recorded.experts), torch.from_numpy(recorded.weights)


def run(model: Model) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return call(model, tokens())


def find_error(model: Model, ids: torch.Tensor, weights: torch.Tensor) -> float:
    """Return the largest difference of a decision from what the oracle finds."""
    block = model.moe
    torch.manual_seed(3)
    with torch.no_grad():
        hidden = call(model.embedding, tokens()).flatten(0, 1)
        output = call(block, hidden) - block.rest(hidden)
        received = block.before(hidden)
        experts = range(block.num_experts)
        by_expert = torch.stack([block.run_expert(expert, received) for expert in experts])
    return find_difference(fit_weights(output, by_expert), ids, weights)


@pytest.mark.parametrize(
    "what", [what for what in EXACT if what != "more experts than hidden states are wide"]
)
def test_what_is_recorded_is_what_the_oracle_finds(what: str) -> None:
    model = build(EXACT[what])
    tolerance = TOLERANCE_OF_HALF if EXACT[what] is GroupedProducts else TOLERANCE
    ids, weights = record(model)
    assert find_error(model, ids, weights) < tolerance
    # Planted errors: another token's decision, another expert, another weight.
    assert find_error(model, ids.roll(1, dims=0), weights.roll(1, dims=0)) > 5 * tolerance
    assert find_error(model, torch.where(ids < 0, ids, (ids + 1) % NUM_EXPERTS), weights) > 0.05
    assert find_error(model, ids, 1.1 * weights) > tolerance


@pytest.mark.parametrize(
    "what", ["sorted rows", "weights within experts", "matrices under each other"]
)
def test_a_token_alone_leaves_experts_without_rows(what: str) -> None:
    model = build(EXACT[what])
    alone = tokens()[:1, :1]
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(alone)
        expected, chosen = model.moe.route(call(model.embedding, alone).flatten(0, 1))
    (recorded,) = recorder.calls[0].layers
    assert recorded.experts.tolist() == chosen.tolist()
    assert recorded.weights.tolist() == pytest.approx(expected.float().numpy())


def test_more_experts_than_hidden_states_are_wide_have_their_routers_decision() -> None:
    """The oracle can't tell that many experts apart."""
    model = build(EXACT["more experts than hidden states are wide"])
    ids, weights = record(model)
    with torch.no_grad():
        expected, chosen = model.moe.route(call(model.embedding, tokens()).flatten(0, 1))
    assert torch.equal(ids.long(), chosen)
    assert torch.equal(weights, expected.float())
    assert ids.max() >= HIDDEN_SIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [Fused, Gathered, DispatchAndCombine])
def test_the_weights_are_the_routers_bit_for_bit(
    make: Callable[[], Fused], dtype: torch.dtype
) -> None:
    model = build(make, dtype=dtype)
    ids, weights = record(model)
    with torch.no_grad():
        expected, chosen = model.moe.route(call(model.embedding, tokens()).flatten(0, 1))
    kept = ids >= 0
    same = chosen[:, :, None] == ids.long()[:, None, :]
    found = (same * expected[:, :, None]).sum(dim=1)
    assert torch.equal(weights[kept], found[kept].float())
    assert kept.all() or make is DispatchAndCombine


@pytest.mark.parametrize("what", EXACT)
def test_the_recorder_leaves_no_trace(what: str) -> None:
    plain, watched = build(EXACT[what]), build(EXACT[what])
    before = {path: set(vars(module)) for path, module in watched.named_modules()}
    expected, state = run(plain), torch.get_rng_state()
    torch.manual_seed(3)
    with RoutingRecorder(watched), torch.no_grad():
        output = watched(tokens())
    assert torch.equal(output, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path: set(vars(module)) for path, module in watched.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())
    for left, right in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_gradients_pass_as_without_the_recorder() -> None:
    gradients = []
    for is_recorded in (False, True):
        model = build(DispatchAndCombine).train()
        with RoutingRecorder(model) if is_recorded else torch.enable_grad():
            call(model, tokens()).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_model_in_inference_mode_has_the_same_decision() -> None:
    model = build(DispatchAndCombine)
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model(tokens())
    ids, _ = record(model)
    assert torch.equal(torch.from_numpy(recorder.calls[0].layers[0].experts), ids)


@pytest.mark.parametrize("make", [WithNoise, WithDropout])
def test_a_block_in_training_is_recorded_as_it_drew(make: Callable[[], Fused]) -> None:
    model = build(make).train()
    ids, weights = record(model)
    assert find_error(model, ids, weights) < TOLERANCE


def test_dropped_tokens_and_unchosen_ones_are_among_what_was_tried() -> None:
    """The blocks have these cases, so that the tests above prove something about them."""
    dropped, _ = record(build(DispatchAndCombine))
    assert (dropped == -1).any()
    chosen, _ = record(build(ExpertChoice))
    counts = (chosen >= 0).sum(dim=1)
    assert set(counts.tolist()) >= {0, 1, 2}


@pytest.mark.parametrize(
    ("what", "routing"),
    [
        ("dispatch and combine", "token_choice"),
        ("all experts on all tokens", "token_choice"),
        ("expert choice", "expert_choice"),
        ("a dense mixture", "dense"),
    ],
)
def test_the_kind_of_routing_is_known(what: str, routing: str) -> None:
    model = build(EXACT[what])
    with RoutingRecorder(model) as recorder, torch.no_grad():
        assert recorder.find_routing(recorder.layers[0]) is None
        model(tokens())
    assert recorder.find_routing(recorder.layers[0]) == routing
    assert set(recorder.to_frame().attrs["routing"].values()) == {routing}


@pytest.mark.parametrize("what", REFUSED)
def test_a_block_that_can_not_be_read_is_refused_and_left_as_it_was(what: str) -> None:
    make, reason = REFUSED[what]
    model = build(make)
    with pytest.raises(UntraceableError, match=f"Can't tell what moe routes: {reason}"):
        record(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_exception_within_the_block_is_the_users() -> None:
    model = build(Gathered, dtype=torch.float32)
    model.moe.gate = nn.Linear(HIDDEN_SIZE + 1, NUM_EXPERTS)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), RoutingRecorder(model):
        model(tokens())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
