"""Layers that people write are recorded as a plain computation of their routing has it, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedLayer
from tests.tracing.own_layers.modules.layers import (
    LAYERS,
    NUM_EXPERTS,
    WIDTH,
    Layer,
    OtherWidth,
    RouterParameter,
    SparseDispatcher,
    Surrounded,
    Tensor,
    TwoLevels,
    top_k_table,
)
from tests.tracing.own_layers.modules.models import (
    AddsClassToken,
    GateInHolder,
    GateOutside,
    Gpt,
    WithoutBlock,
)
from tests.tracing.own_layers.modules.odd_layers import (
    EXACT,
)
from tests.tracing.own_layers.recording import AnyLayer, assert_is, make, record, states


def find_outer(layers: list[RecordedLayer]) -> RecordedLayer:
    return next(layer for layer in layers if not layer.layer.block_path)


@pytest.mark.parametrize("kind", [*LAYERS.values(), *EXACT.values()])
def test_a_layer_alone_has_the_weights_of_a_plain_computation(kind: AnyLayer) -> None:
    layer, hidden = make(kind), states()
    with torch.no_grad():
        table, plain = layer.table(hidden.reshape(-1, WIDTH)), layer(hidden.clone())
    seen = []
    handle = layer.register_forward_hook(lambda _layer, _args, output: seen.append(output))
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(hidden)
    handle.remove()
    recorded = find_outer([layer for call in recorder.calls for layer in call.layers])
    assert_is(recorded, table)
    for before, now in zip(
        *((o if isinstance(o, tuple) else (o,)) for o in (plain, seen[0])), strict=True
    ):
        assert torch.equal(before, now)


def test_every_layer_is_exact_in_one_model() -> None:
    kinds = [kind for kind in LAYERS.values() if not issubclass(kind, OtherWidth | TwoLevels)]
    model = make(lambda: Gpt(*(kind() for kind in kinds)))
    received: dict[int, Tensor] = {}
    for number, block in enumerate(model.h):
        block.moe.register_forward_pre_hook(
            lambda _layer, args, number=number: received.update(
                {number: args[0].flatten(0, 1).clone()}
            )
        )
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(torch.arange(12).view(2, 6))
    ((call),) = recorder.calls
    assert call.token_axis == "input"
    assert len(call.layers) == len(kinds)
    for recorded in call.layers:
        number = recorded.layer.layer
        with torch.no_grad():
            assert_is(recorded, model.h[number].moe.table(received[number]))


@pytest.mark.parametrize("num_columns", [1, 7])
def test_inner_experts_of_two_levels_are_recorded_on_their_own_rows(num_columns: int) -> None:
    layer, hidden = make(TwoLevels), states(1, num_columns)
    layers = record(layer, hidden)
    rows = hidden.reshape(-1, WIDTH)
    outer = layer.table(rows)
    for recorded in layers:
        if not recorded.layer.block_path:
            continue
        number = int(recorded.layer.block_path.rpartition(".")[2])
        reached = rows[~outer[:, number].isnan()]
        if not len(reached):
            assert not len(recorded.experts)
            continue
        assert_is(recorded, layer.experts[number].table(reached))
    assert len({recorded.layer.stack for recorded in layers}) >= 2


@pytest.mark.parametrize("kind", [GateOutside, WithoutBlock])
def test_a_gate_may_lie_outside_of_the_block(kind: AnyLayer) -> None:
    model, idx = make(kind), torch.arange(12).view(2, 6)
    (recorded,) = record(model, idx)
    with torch.no_grad():
        assert_is(recorded, top_k_table(model.scores(idx)))


def test_the_block_is_the_nearest_module_that_is_called() -> None:
    model = make(GateInHolder)
    (recorded,) = record(model, states())
    with torch.no_grad():
        assert_is(recorded, top_k_table(model.gate(states()).flatten(0, 1)))
    assert recorded.layer.experts_path == "holder.experts"


class Threshold(RouterParameter):
    """Sends a token to each expert whose score is large enough: to any number of them."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights = scores.sigmoid()
        output = torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            tokens = torch.nonzero(weights[:, expert] > 0.7).flatten()
            if len(tokens):
                made = self.run(expert, rows[tokens])
                output = output.index_add(0, tokens, weights[tokens, expert, None] * made)
        return rows + output

    def table(self, rows: Tensor) -> Tensor:
        weights = self.score(rows).sigmoid()
        return weights.masked_fill(weights <= 0.7, torch.nan)


def test_a_token_may_have_any_number_of_experts_and_a_call_none() -> None:
    layer, hidden = make(Threshold), states()
    alone = hidden.new_zeros(1, 3, WIDTH)
    with torch.no_grad():
        table = layer.table(hidden.reshape(-1, WIDTH))
        assert layer.table(alone[0]).isnan().all()
    assert len(set((~table.isnan()).sum(dim=1).tolist())) > 2
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(hidden)
        layer(alone)
    first, second = (call.layers[0] for call in recorder.calls)
    assert_is(first, table)
    assert second.experts.tolist() == [[-1]] * 3
    # Without an earlier call, experts that run unseen would look the same.
    with pytest.raises(UntraceableError, match="none of its experts ran as a module"):
        record(make(Threshold), alone)


def test_a_class_token_that_the_layer_adds_is_a_token() -> None:
    layer, hidden = make(AddsClassToken), states(2, 5)
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(hidden)
    ((recorded,),) = (call.layers for call in recorder.calls)
    with torch.no_grad():
        assert_is(recorded, layer.table(layer.extend(hidden).flatten(0, 1)))
    frame = recorder.to_frame()
    assert frame.groupby("batch_index")["position"].nunique().to_dict() == {0: 6, 1: 6}


class NoisyGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, NUM_EXPERTS)

    def forward(self, rows: Tensor) -> Tensor:
        scores: Tensor = self.layer(F.dropout(rows, 0.2, self.training))
        return scores + torch.randn_like(scores)


class Noisy(Layer):
    """Drops out before and after, and multiplies by jitter in between."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        rows = self.dropout(x).reshape(-1, WIDTH)
        rows = rows * torch.empty_like(rows).uniform_(0.9, 1.1)
        self.seen = self.score(rows)
        return F.dropout(self.mix(rows, self.seen), 0.2, self.training).view_as(x)


class NoisyEverywhere(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.gate = NoisyGate()


class NoisyExperts(NoisyEverywhere):
    def add_experts(self) -> None:
        super().add_experts()
        for expert in self.experts:
            expert.append(nn.Dropout(0.3))


@pytest.mark.parametrize("kind", [Noisy, NoisyEverywhere, NoisyExperts])
def test_a_second_run_draws_the_numbers_of_the_first(kind: AnyLayer) -> None:
    layer = make(kind).train()
    (recorded,) = record(layer, states())
    assert_is(recorded, top_k_table(layer.seen))


def test_noise_on_the_scores_is_part_of_the_decision() -> None:
    layer = make(SparseDispatcher).train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(9)
        (recorded,) = record(layer, states())
        after = torch.get_rng_state()
        torch.default_generator.manual_seed(9)
        with torch.no_grad():
            table = layer.table(states().reshape(-1, WIDTH))
        torch.default_generator.manual_seed(9)
        layer(states())
        assert torch.equal(after, torch.get_rng_state())
    assert_is(recorded, table)
    # Without noise, another decision would be made.
    assert not torch.equal(table.isnan(), layer.eval().table(states().reshape(-1, WIDTH)).isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_exact_too(dtype: torch.dtype) -> None:
    layer = make(Surrounded).to(dtype)
    (recorded,) = record(layer, states().to(dtype))
    with torch.no_grad():
        table = layer.table(states().to(dtype).reshape(-1, WIDTH))
    assert_is(recorded, table, rtol=max(4 * torch.finfo(dtype).eps, 1e-6))


def test_two_recorders_see_the_same() -> None:
    layer = make(Surrounded)
    with RoutingRecorder(layer) as outer, RoutingRecorder(layer) as inner, torch.no_grad():
        layer(states())
    assert outer.to_frame().equals(inner.to_frame())
