"""Weights that multiply what experts receive are recorded, and explain what the layer returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedLayer
from moetool.tracing.recording.watch.weighted_rows import WeightTrail
from tests.tracing.own_layers.modules.layers import (
    NUM_EXPERTS,
    WIDTH,
    Layer,
    RouterParameter,
    Tensor,
)
from tests.tracing.own_layers.modules.weighted_layers import (
    LAYERS,
    DropsAfterwards,
    ScalesOutputToo,
    StackedBothWays,
    StackedDispatch,
    StackedWeigh,
    WeighsAllAtOnce,
    WeighsInput,
)
from tests.tracing.own_layers.recording import as_table, assert_is, make, record, states


def recompute(layer: WeighsInput, hidden: Tensor, weights: Tensor) -> Tensor:
    """Return the layer's output for a table of weights, NaN where an expert does not run."""
    rows = layer.enter(hidden).reshape(-1, WIDTH)
    total = torch.zeros_like(rows)
    for token, expert in torch.nonzero(~weights.isnan()).tolist():
        weighted = weights[token, expert] * rows[token : token + 1]
        total[token] += layer.run(expert, weighted)[0]
    return layer.leave(total.view_as(hidden), hidden)


def exact_table(recorded: RecordedLayer, table: Tensor) -> Tensor:
    """Return recorded weights in float64, after comparing them with a table that has the digits."""
    assert_is(recorded, table)
    return torch.where(as_table(recorded, NUM_EXPERTS).isnan(), torch.nan, table)


@pytest.mark.parametrize("what", LAYERS)
def test_the_weights_are_the_routers_and_give_the_output(what: str) -> None:
    layer = make(LAYERS[what]).double()
    hidden = states().double()
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        output = layer(hidden.clone())
        ((recorded,),) = (call.layers for call in recorder.calls)
        weights = exact_table(recorded, layer.table(hidden.reshape(-1, WIDTH)))
    assert recorder.weighs_input(recorded.layer)
    # Experts that receive zeros return their biases, where all of them run.
    if what == "all experts run":
        weights = weights.nan_to_num()
    with torch.no_grad():
        torch.testing.assert_close(recompute(layer, hidden, weights), output)
        off = weights.clone()
        off[3] *= 1.01
        for wrong in (off, weights.roll(1, dims=0), weights.roll(1, dims=1)):
            assert not torch.allclose(recompute(layer, hidden, wrong), output, rtol=1e-6)


@pytest.mark.parametrize("what", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_have_the_decisions_of_the_router(what: str, dtype: torch.dtype) -> None:
    layer, hidden = make(LAYERS[what]).to(dtype), states().to(dtype)
    (recorded,) = record(layer, hidden.clone())
    with torch.no_grad():
        table = layer.table(hidden.reshape(-1, WIDTH))
    if (LAYERS[what], dtype) == (WeighsAllAtOnce, torch.bfloat16):
        # Of two scores that are equal in this precision, the first is taken.
        first = table.isnan().logical_not().cumsum(dim=1) == 1
        table = table.masked_fill(~first, torch.nan)
    assert_is(recorded, table, rtol=max(4 * torch.finfo(dtype).eps, 1e-6))


def test_numbers_that_are_dropped_are_no_part_of_the_weights() -> None:
    layer = make(DropsAfterwards).train()
    (recorded,) = record(layer, states())
    with torch.no_grad():
        assert_is(recorded, layer.table(states().reshape(-1, WIDTH)))


@pytest.mark.parametrize("kind", [ScalesOutputToo, StackedBothWays])
def test_weights_on_both_sides_are_refused(kind: type[WeighsInput]) -> None:
    with pytest.raises(UntraceableError, match="weights multiply what goes into its experts and"):
        record(make(kind), states())


def test_weights_on_outputs_are_not_on_inputs() -> None:
    layer = make(Layer)
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(states())
    assert not recorder.weighs_input(recorder.layers[0])


class GatesTokens(RouterParameter):
    """Multiplies each hidden state by a number that is not a routing weight."""

    def __init__(self) -> None:
        super().__init__()
        self.importance = nn.Linear(WIDTH, 1)

    def enter(self, rows: Tensor) -> Tensor:
        importance: Tensor = self.importance(rows).sigmoid()
        return rows * importance

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        return super().mix(self.enter(rows), scores)


def test_a_number_of_the_token_alone_is_not_a_weight() -> None:
    layer = make(GatesTokens)
    with torch.no_grad(), RoutingRecorder(layer) as recorder:
        layer(states())
        table = layer.table(states().reshape(-1, WIDTH))
    assert_is(recorder.calls[0].layers[0], table)
    assert not recorder.weighs_input(recorder.layers[0])


@pytest.mark.parametrize("kind", [WeighsInput, StackedWeigh])
def test_weights_that_do_not_explain_the_rows_are_refused(
    kind: type[WeighsInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = WeightTrail.find

    def find_wrong(self: WeightTrail, rows: Tensor) -> object:
        found = find(self, rows)
        return None if found is None else found._replace(factors=1.01 * found.factors)

    monkeypatch.setattr(WeightTrail, "find", find_wrong)
    with pytest.raises(UntraceableError, match="its experts receive other rows"):
        record(make(kind), states())


def test_factors_that_are_not_among_the_scores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    list_scores = WeightTrail.list_scores
    monkeypatch.setattr(WeightTrail, "list_scores", lambda *given: 1.01 * list_scores(*given))
    with pytest.raises(UntraceableError, match="its experts receive other rows"):
        record(make(StackedDispatch), states())
