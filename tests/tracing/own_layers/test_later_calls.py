"""Later calls of a searched layer take few second runs, and prove as much as the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.separate.later.known_sum import KnownSum, Weights
from tests.tracing.own_layers.modules.changing_layers import CHANGING, IS_LATER, ForgetsItsSum
from tests.tracing.own_layers.modules.layers import (
    NUM_EXPERTS,
    WIDTH,
    AddsInPlace,
    DroppedPassThrough,
    LayersInLists,
    OneNumber,
    OtherWidth,
    RouterParameter,
    Surrounded,
    Tensor,
)
from tests.tracing.own_layers.modules.odd_layers import AddsToOthers, SharedAfterwards
from tests.tracing.own_layers.planted_errors import (
    off_by_one_per_cent,
    with_experts_exchanged,
    with_rows_exchanged,
    with_tokens_exchanged,
    without_a_token,
)
from tests.tracing.own_layers.recording import AnyLayer, assert_is, make, states

SEARCHED = [
    Surrounded,
    RouterParameter,
    LayersInLists,
    AddsInPlace,
    DroppedPassThrough,
    AddsToOthers,
    SharedAfterwards,
]


@pytest.fixture(autouse=True)
def as_at_first() -> Iterator[None]:
    IS_LATER[0] = False
    yield
    IS_LATER[0] = False


def list_calls() -> list[Tensor]:
    """Return hidden states of different tokens and numbers of tokens."""
    return [states(), 1.5 * states(1, 9).roll(1, dims=1), states(3, 2).neg(), states(1, 1)]


def record_calls(layer: Any) -> tuple[list[Tensor], list[int]]:
    """Record several calls, compare each with its table, and return how often the layer ran in each."""
    forward, num_runs = layer.forward, [0]

    def count(x: Tensor) -> Any:
        num_runs[0] += 1
        return forward(x)

    layer.forward = count
    counts = []
    tables = [layer.table(hidden.reshape(-1, WIDTH)) for hidden in list_calls()]
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        for hidden in list_calls():
            num_runs[0] = 0
            layer(hidden)
            counts.append(num_runs[0])
    for call, table in zip(recorder.calls, tables, strict=True):
        assert_is(call.layers[0], table.detach())
    return tables, counts


@pytest.mark.parametrize("kind", SEARCHED)
def test_later_calls_are_exact_in_three_second_runs(kind: AnyLayer) -> None:
    _, (first, *later) = record_calls(make(kind))
    assert first > 2 * later[0]
    assert later == [4, 4, 4]


def test_a_layer_without_room_for_marks_is_searched_in_each_call() -> None:
    _, (_, *later) = record_calls(make(OtherWidth))
    assert min(later) > 4


@pytest.mark.parametrize("kind", CHANGING)
def test_what_changes_in_a_later_call_is_noticed(kind: AnyLayer) -> None:
    layer = make(kind)
    hidden = states(1, NUM_EXPERTS)
    with RoutingRecorder(layer) as recorder:
        layer(hidden)
        layer(2 * hidden)
        IS_LATER[0] = True
        with pytest.raises(UntraceableError, match=f"routes: {CHANGING[kind]}"):
            layer(3 * hidden)
    assert len(recorder.calls) == 2
    # So is the same in a first call.
    with pytest.raises(UntraceableError), RoutingRecorder(layer):
        layer(hidden)


def test_a_layer_that_is_as_before_is_recorded_again() -> None:
    layer, hidden = make(ForgetsItsSum), states()
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(hidden)
        IS_LATER[0] = True
        with pytest.raises(UntraceableError):
            layer(hidden)
        IS_LATER[0] = False
        layer(hidden)
        table = layer.table(hidden.reshape(-1, WIDTH))
    assert_is(recorder.calls[-1].layers[0], table)


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
@pytest.mark.parametrize("is_zero", [False, True])
def test_planted_errors_are_noticed_and_the_search_starts_anew(
    plant: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    is_zero: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where experts return zeros, so that their own outputs would hide a wrong weight."""
    read, decide, noticed = KnownSum._read_columns, KnownSum.decide, []

    def read_wrong(self: KnownSum, *args: Any, **kwargs: Any) -> Weights:
        return Weights(*plant(*read(self, *args, **kwargs)))

    def decide_and_note(self: KnownSum) -> tuple[Tensor, Tensor]:
        try:
            return decide(self)
        except UntraceableError as error:
            noticed.append(error)
            raise

    monkeypatch.setattr(KnownSum, "_read_columns", read_wrong)
    monkeypatch.setattr(KnownSum, "decide", decide_and_note)
    layer = make(RouterParameter)
    hidden = states()
    if is_zero:
        for expert in layer.experts:
            expert[-1].weight.data.zero_()
            expert[-1].bias.data.zero_()
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(hidden)
        layer(hidden.flip(1))
        table = layer.table(hidden.flip(1).reshape(-1, WIDTH))
    assert len(noticed) == 1
    assert_is(recorder.calls[1].layers[0], table)


def test_the_sum_is_found_if_the_first_experts_have_no_weight() -> None:
    """A width of one has room for the marks of one expert."""
    layer, hidden = make(OneNumber), states(3, 1)
    table = layer.table(hidden.reshape(-1, WIDTH)).detach()
    assert table[:, 0].isnan().all()
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(hidden)
    assert_is(recorder.calls[0].layers[0], table)


class SumInFloat32(RouterParameter):
    """Adds up in float32 what its experts return in less."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(2, dim=-1)
        weights = weights.softmax(dim=-1)
        output = torch.zeros(rows.shape)
        for expert in range(NUM_EXPERTS):
            tokens, places = torch.where(ids == expert)
            if len(tokens):
                made = weights[tokens, places, None] * self.run(expert, rows[tokens])
                output[tokens] += made.float()
        return output.to(rows.dtype)


HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((SumInFloat32, dtype) for dtype in HALF),
        *(
            (kind, dtype)
            for kind in (Surrounded, RouterParameter, LayersInLists, AddsInPlace, OtherWidth)
            for dtype in (*HALF, torch.float64)
        ),
    ],
)
def test_other_precisions_are_exact_in_all_calls(kind: AnyLayer, dtype: torch.dtype) -> None:
    layer = make(kind).to(dtype)
    calls = [states().to(dtype), states(1, 5).flip(1).to(dtype)]
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        for hidden in calls:
            layer(hidden.clone())
    for call, hidden in zip(recorder.calls, calls, strict=True):
        with torch.no_grad():
            table = layer.table(hidden.reshape(-1, WIDTH))
        assert_is(call.layers[0], table, rtol=max(4 * torch.finfo(dtype).eps, 1e-6))
