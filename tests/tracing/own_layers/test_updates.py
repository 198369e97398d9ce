"""Tokens that choose among low-rank updates are recorded with the weights of the updated experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moetool.anatomy.routing.proposed.expert_updates import list_updates
from moetool.errors import UntraceableError
from tests.tracing.oracle import find_difference, fit_weights
from tests.tracing.own_layers.modules.layers import NUM_EXPERTS, WIDTH, Layer, ListOfFfns
from tests.tracing.own_layers.modules.updates import EXACT, REFUSED, Mixture
from tests.tracing.own_layers.recording import assert_is, make, record, states


@pytest.mark.parametrize("what", EXACT)
def test_the_weights_are_the_routers_and_those_that_explain_the_output(what: str) -> None:
    layer, hidden = make(EXACT[what]).double(), states().double()
    mixture: Any = layer.mixtures["first"] if what == "a forward that was replaced" else layer
    for update in getattr(mixture, "updates", {}).values():
        update.double().eval()
    if hasattr(mixture, "gate"):
        mixture.gate = mixture.gate.double()
    (recorded,) = record(layer, hidden)
    rows = hidden.reshape(-1, WIDTH)
    with torch.no_grad():
        assert_is(recorded, layer.table(rows))
        by_expert = torch.stack([mixture.run(expert, rows) for expert in range(NUM_EXPERTS)])
        fit = fit_weights(layer(hidden).reshape(-1, WIDTH), by_expert)
    ids, weights = (torch.from_numpy(values) for values in (recorded.experts, recorded.weights))
    # The trace has the digits of float32.
    assert find_difference(fit, ids, weights) < 1e-6
    assert find_difference(fit, ids, 1.01 * weights) > 1e-3
    assert find_difference(fit, ids.roll(1, dims=0), weights) > 1e-2


def test_dropout_that_no_eval_reaches_is_no_part_of_the_weights() -> None:
    layer = make(EXACT["a forward that was replaced"])
    updates = layer.mixtures["first"].updates.values()
    assert any(update.training for update in updates)
    (recorded,) = record(layer, states())
    with torch.no_grad():
        assert_is(recorded, layer.table(states().reshape(-1, WIDTH)))


@pytest.mark.parametrize("what", EXACT)
def test_a_token_alone_leaves_experts_without_rows(what: str) -> None:
    layer, hidden = make(EXACT[what]), states(1, 1)
    (recorded,) = record(layer, hidden)
    with torch.no_grad():
        assert_is(recorded, layer.table(hidden.reshape(-1, WIDTH)))


@pytest.mark.parametrize("what", REFUSED)
def test_updates_that_are_not_all_of_an_expert_are_refused(what: str) -> None:
    kind, reason = REFUSED[what]
    layer = make(kind)
    with pytest.raises(UntraceableError, match=reason):
        record(layer, states())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in layer.modules())


def test_the_updates_of_an_expert_are_found_by_their_shapes() -> None:
    updates = list_updates(make(Mixture))
    assert len(updates) == NUM_EXPERTS
    assert [len(update) for update in updates] == [6] * NUM_EXPERTS
    # Experts of full rank, and a stack of updated layers without a router, are others.
    assert not list_updates(make(Layer))
    assert not list_updates(make(ListOfFfns))
    without_router = make(Mixture)
    without_router.router = nn.Linear(WIDTH, NUM_EXPERTS + 3)
    assert not list_updates(without_router)
