"""Layers that people write are recorded as a plain computation of their routing has it, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedLayer
from moetool.tracing.recording.watch.separate.proof import SumInBlock
from moetool.tracing.recording.watch.separate.search import SumSearch
from moetool.tracing.windows.probabilities import find_score_function
from tests.tracing.own_layers.layers import (
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
from tests.tracing.own_layers.models import (
    AddsClassToken,
    GateInHolder,
    GateOutside,
    Gpt,
    WithoutBlock,
)
from tests.tracing.own_layers.odd_layers import (
    EXACT,
    NUM_CALLS,
    REFUSED,
    SoftSlots,
    SoftSlotsWithScores,
)

AnyLayer = type[Any]


def make(kind: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return kind().eval()


def states(num_rows: int = 2, num_columns: int = 7) -> Tensor:
    """Return hidden states, two of which are equal."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(num_rows, num_columns, WIDTH, generator=generator)
    hidden[-1, -1] = hidden[0, 0]
    return hidden


def as_table(recorded: RecordedLayer, num_experts: int) -> Tensor:
    """Return a weight for every expert, NaN where it did not run."""
    ids = torch.from_numpy(recorded.experts).long()
    table = torch.full((len(ids), num_experts + 1), torch.nan)
    table.scatter_(
        1, ids.masked_fill(ids < 0, num_experts), torch.from_numpy(recorded.weights).float()
    )
    return table[:, :num_experts]


def assert_is(recorded: RecordedLayer, table: Tensor, *, rtol: float = 1e-5) -> None:
    found = as_table(recorded, table.shape[1])
    torch.testing.assert_close(found, table.float(), equal_nan=True, rtol=rtol, atol=1e-7)


def record(module: nn.Module, *given: Any, **options: Any) -> list[RecordedLayer]:
    with torch.no_grad(), RoutingRecorder(module, **options) as recorder:
        module(*given)
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())
    return [layer for call in recorder.calls for layer in call.layers]


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


@pytest.mark.parametrize("kind", [Noisy, NoisyEverywhere])
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


def test_a_block_that_needs_a_search_is_refused_in_half_precision() -> None:
    layer = make(Surrounded).half()
    with pytest.raises(UntraceableError, match="is read in bfloat16 or float32"):
        record(layer, states().half())


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_weights_describe_is_refused_and_left_as_it_was(what: str) -> None:
    kind, reason = REFUSED[what]
    NUM_CALLS[0] = 0
    layer = make(kind)
    modules = list(layer.modules())
    with pytest.raises(UntraceableError, match=f"Can't tell what {kind.__name__} routes: {reason}"):
        record(layer, states())
    assert list(layer.modules()) == modules
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in layer.modules())


@pytest.mark.parametrize("kind", [SoftSlots, SoftSlotsWithScores])
def test_slots_that_are_as_many_as_tokens_are_not_taken_for_them(
    kind: AnyLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UntraceableError, match="its experts receive other rows"):
        record(make(kind), states(1, NUM_EXPERTS))

    # A single check is what refuses them.
    monkeypatch.setattr(SumInBlock, "_check_rows_are_tokens", lambda *_: None)
    (recorded,) = record(make(kind), states(1, NUM_EXPERTS))
    assert recorded.experts.tolist() == [[0], [1], [2], [3]]


def off_by_one_per_cent(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights * 1.01, rows


def with_experts_exchanged(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights.roll(1, dims=1), rows.roll(1, dims=1)


def with_tokens_exchanged(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights.roll(1, dims=0), rows.roll(1, dims=0)


def with_rows_exchanged(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights, rows.masked_fill(weights != 0, 0)


def without_a_token(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    weights[3] = 0
    return weights, rows


@pytest.mark.parametrize(
    "plant",
    [
        off_by_one_per_cent,
        with_experts_exchanged,
        with_tokens_exchanged,
        with_rows_exchanged,
        without_a_token,
    ],
)
@pytest.mark.parametrize("kind", [Surrounded, RouterParameter])
def test_planted_errors_of_a_search_are_noticed(
    plant: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    kind: AnyLayer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = SumSearch._read_group

    def read_wrong(self: SumSearch, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return plant(*read(self, *args, **kwargs))

    monkeypatch.setattr(SumSearch, "_read_group", read_wrong)
    with pytest.raises(UntraceableError, match="Can't tell what"):
        record(make(kind), states())


def test_probabilities_of_a_router_that_is_a_parameter_are_refused() -> None:
    (recorded,) = record(make(RouterParameter), states(), keep_scores=True)
    assert recorded.scores is None
    with pytest.raises(UntraceableError, match="returns no score for every expert"):
        find_score_function(recorded)


def test_saliency_of_a_searched_block_is_refused() -> None:
    model = make(lambda: Gpt(Surrounded()))
    with pytest.raises(UntraceableError, match=r"Can't record the saliency of h\.0\.moe\.experts"):
        record(model, torch.arange(6).view(1, 6), keep_saliency=True)


def test_two_recorders_see_the_same() -> None:
    layer = make(Surrounded)
    with RoutingRecorder(layer) as outer, RoutingRecorder(layer) as inner, torch.no_grad():
        layer(states())
    assert outer.to_frame().equals(inner.to_frame())
