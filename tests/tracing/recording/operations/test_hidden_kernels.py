"""Experts in kernels that torch can't see: what they receive is proven, or the block is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import UntraceableError
from tests.tracing.oracle import find_difference, fit_weights
from tests.tracing.recording.operations.blocks import HIDDEN_SIZE, NUM_EXPERTS, TOP_K, call
from tests.tracing.recording.operations.hidden_kernels import EXACT, REFUSED, HiddenBlock

TOLERANCE = 1e-6


class Model(nn.Module):
    """A block that is not the model itself."""

    def __init__(self, block: HiddenBlock) -> None:
        super().__init__()
        self.moe = block

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return call(self.moe, hidden_states)


def build(what: str) -> Model:
    torch.manual_seed(1)
    make = EXACT[what] if what in EXACT else REFUSED[what][0]
    return Model(make()).double().eval()


def draw(num_sequences: int = 2) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(num_sequences, 9, HIDDEN_SIZE, dtype=torch.float64)


def record(model: Model, *calls: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the ids and weights of each call."""
    with RoutingRecorder(model) as recorder, torch.no_grad():
        for hidden_states in calls:
            call(model, hidden_states)
    layers = [recorded.layers[0] for recorded in recorder.calls]
    assert {layer.layer.rule for layer in layers} == {RoutingRule.OPERATIONS}
    return [(torch.from_numpy(r.experts), torch.from_numpy(r.weights)) for r in layers]


def find_error(
    model: Model, what: str, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> float:
    """Return the largest difference of a decision from what a fit in float64 finds."""
    block, rows = model.moe, hidden_states.flatten(0, 1)
    received = block.find_received(rows).detach().numpy()
    with torch.no_grad():
        output = call(block, hidden_states).flatten(0, 1)
    rest = rows if what in ("a shared part", "a norm and a residual") else torch.zeros_like(rows)
    by_expert = torch.stack(
        [torch.from_numpy(block.experts.run(e, received)) for e in range(NUM_EXPERTS)]
    )
    factor = 1 / 2 if what == "half of the sum" else 1
    return find_difference(fit_weights((output - rest) / factor, by_expert), ids, weights)


@pytest.mark.parametrize("what", EXACT)
def test_what_is_recorded_is_what_the_oracle_finds(what: str) -> None:
    model, calls = build(what), (draw(), draw(3))
    for hidden_states, (ids, weights) in zip(calls, record(model, *calls), strict=True):
        assert find_error(model, what, hidden_states, ids, weights) < TOLERANCE
        # Planted errors: another expert, another token's decision, another weight.
        others = torch.where(ids < 0, ids, (ids + 1) % NUM_EXPERTS)
        assert find_error(model, what, hidden_states, others, weights) > 0.05
        assert find_error(model, what, hidden_states, ids.roll(1, 0), weights.roll(1, 0)) > 0.05
        assert find_error(model, what, hidden_states, ids, 1.01 * weights) > TOLERANCE
        assert bool((ids < 0).any()) == (what == "capacity")


def test_the_router_its_scores_and_the_factor_are_known() -> None:
    model, hidden_states = build("half of the sum"), draw()
    with RoutingRecorder(model, keep_scores=True) as recorder, torch.no_grad():
        call(model, hidden_states)
    (layer,) = recorder.layers
    assert recorder.find_router(layer) == "moe.gate"
    assert recorder.find_routing(layer) == "token_choice"
    assert recorder.find_output_factor(layer) == 0.5
    (recorded,) = recorder.calls[0].layers
    with torch.no_grad():
        expected, chosen = model.moe.route(hidden_states.flatten(0, 1))
        scores = call(model.moe.gate, hidden_states.flatten(0, 1))
    assert torch.equal(torch.from_numpy(recorded.experts).long(), chosen)
    assert torch.equal(torch.from_numpy(recorded.weights), expected.float())
    assert recorded.scores is not None
    assert torch.allclose(torch.from_numpy(recorded.scores).double(), scores, atol=1e-6)


def test_a_token_of_zeros_is_not_taken_for_dropped() -> None:
    hidden_states = draw()
    hidden_states[0, 3] = 0
    ((ids, _),) = record(build("ids and weights"), hidden_states)
    assert ids.shape == (18, TOP_K)
    assert (ids >= 0).all()


@pytest.mark.parametrize("what", EXACT)
def test_the_recorder_leaves_no_trace(what: str) -> None:
    model, hidden_states = build(what), draw()
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    with torch.no_grad():
        expected = call(model, hidden_states)
        random = torch.get_rng_state()
        with RoutingRecorder(model):
            output = call(model, hidden_states)
    assert torch.equal(output, expected)
    assert torch.equal(torch.get_rng_state(), random)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("what", REFUSED)
def test_experts_that_do_something_else_are_refused(what: str) -> None:
    model, hidden_states = build(what), draw()
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(UntraceableError, match="Can't tell what moe routes") as refused:
        record(model, hidden_states)
    assert REFUSED[what][1] in refused.value.facts[0]
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_in_a_later_call_is_noticed() -> None:
    """The first call shows what stays; each call is proven on its own."""
    model, hidden_states = build("ids and weights"), draw()
    with RoutingRecorder(model), torch.no_grad():
        call(model, hidden_states)
        model.moe.experts.kernel = REFUSED["another expert"][0]().double().experts.kernel
        with pytest.raises(UntraceableError, match=r"they run other experts"):
            call(model, hidden_states)
