"""Layers that people write are counted as one counts them by hand, or with what is unknown of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from moetool import RoutingRecorder, inspect_model
from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.inspection.result import Inspection
from tests.tracing.own_layers.modules.layers import (
    LAYERS,
    NUM_EXPERTS,
    WIDTH,
    DroppedPassThrough,
    Layer,
    Tensor,
    UnequalExperts,
)
from tests.tracing.own_layers.modules.models import GateInHolder, GateOutside, Gpt, WithoutBlock
from tests.tracing.own_layers.modules.odd_layers import EXACT, REFUSED, EveryChoiceAgain
from tests.tracing.own_layers.recording import make, states
from tests.tracing.recording.operations.blocks import (
    HIDDEN_SIZE,
    INNER_SIZE,
    DispatchAndCombine,
    Fused,
    GateOfItsOwn,
    Gathered,
    Mixture,
)

# Of 12 in, 20 within and 12 out, with biases.
EXPERT = 12 * 20 + 20 + 20 * 12 + 12
ROUTER = 12 * 4

# Total, and the fewest and the most that a token runs.
BY_HAND: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(
        ("plain", "ffns", "in place", "router parameter", "cosine router", "hash router"),
        (ROUTER + 4 * EXPERT, ROUTER + 2 * EXPERT, ROUTER + 2 * EXPERT),
    ),
    "adds to others": (ROUTER + 4 * EXPERT, ROUTER + 2 * EXPERT, ROUTER + 2 * EXPERT),
    "mlps": (ROUTER + 4 * EXPERT,) * 3,
    "numbered": (12 * 8 + 8 * EXPERT, 12 * 8 + EXPERT, 12 * 8 + EXPERT),
    "layers in lists": (ROUTER + 4 * 720, ROUTER + 2 * 720, ROUTER + 2 * 720),
    # Two norms, one with a bias, and two projections.
    "surrounded": (2096 + 36 + 312, 1072 + 36 + 312, 1072 + 36 + 312),
    # Of 260 and 12 * 5 + 5 parameters, and of one number less.
    "other width": (ROUTER + 4 * 365, ROUTER + 2 * 365, ROUTER + 2 * 365),
    "one number": (ROUTER + 4 * 281, ROUTER + 2 * 281, ROUTER + 2 * 281),
    "sparse dispatcher": (2 * ROUTER + 4 * 365, 2 * ROUTER + 2 * 365, 2 * ROUTER + 2 * 365),
    "two levels": (ROUTER + 4 * 2096, ROUTER + 2 * 1072, ROUTER + 2 * 1072),
    # A dense layer, a router and four updates of rank 2, all of which run.
    "adapters": (12 * 12 + 12 + ROUTER + 4 * 4 * 12,) * 3,
    "shared afterwards": (2096 + EXPERT + 24, 1072 + EXPERT + 24, 1072 + EXPERT + 24),
}
# Those of them differ in what a token runs.
RANGES = ("dropped pass through", "unequal experts", "every choice again")


def active_of(inspected: Inspection) -> ActiveRange | None:
    assert inspected.parameters is not None
    return inspected.parameters.active[ActiveDefinition.ALL]


def total_of(inspected: Inspection) -> int | None:
    assert inspected.parameters is not None
    assert sum(row.params or 0 for row in inspected.rows) == inspected.parameters.total
    return inspected.parameters.total


def record(module: nn.Module, *given: Any, num_calls: int = 1) -> RoutingRecorder:
    with torch.no_grad(), RoutingRecorder(module) as recorder:
        for _ in range(num_calls):
            module(*given)
    return recorder


def said(inspected: Inspection) -> str:
    return " ".join(inspected.notes)


def test_all_layers_are_counted_by_hand() -> None:
    assert {*BY_HAND, *RANGES} == {*LAYERS, *EXACT}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_recorded_layer_has_the_parameters_that_one_counts_by_hand(name: str) -> None:
    layer = make({**LAYERS, **EXACT}[name])
    inspected = inspect_model(layer, recording=record(layer, states()))
    total, fewest, most = BY_HAND[name]
    assert (total_of(inspected), active_of(inspected)) == (total, ActiveRange(fewest, most))
    assert inspected.parameters is not None
    assert inspected.parameters.components["router"] == (
        2 * ROUTER if name in ("sparse dispatcher", "numbered") else ROUTER
    )
    assert inspected.num_moe_layers == 1
    assert "unknown: no" not in said(inspected).replace("FLOPs unknown: no", "")


@pytest.mark.parametrize("name", [name for name in BY_HAND if name not in ("mlps", "adapters")])
def test_a_number_that_is_given_counts_as_a_recorded_one(name: str) -> None:
    layer = make({**LAYERS, **EXACT}[name])
    top_k = 1 if name == "numbered" else 2
    inspected = inspect_model(layer, top_k=top_k)
    total, fewest, most = BY_HAND[name]
    assert (total_of(inspected), active_of(inspected)) == (total, ActiveRange(fewest, most))
    assert "top_k is as given" in said(inspected)


@pytest.mark.parametrize("name", [*LAYERS, *EXACT, *REFUSED])
def test_without_a_number_active_parameters_are_unknown_and_no_layer_is_dense(name: str) -> None:
    kinds: dict[str, Any] = {**LAYERS, **EXACT, **{n: kind for n, (kind, _) in REFUSED.items()}}
    layer = make(kinds[name])
    inspected = inspect_model(layer)
    assert total_of(inspected) == sum(parameter.numel() for parameter in layer.parameters())
    assert active_of(inspected) is None
    assert "Active parameters unknown" in said(inspected)
    assert "ense" not in said(inspected)
    assert inspected.num_experts != 0
    assert "dense" not in repr(inspected)


def count_by_table(table: Tensor, sizes: list[int]) -> tuple[int, int, float]:
    """Return the fewest, the most and the mean of the experts' parameters that a token runs."""
    ran = (~table.isnan()).double() @ torch.tensor(sizes, dtype=torch.float64)
    return int(ran.min()), int(ran.max()), float(ran.mean())


@pytest.mark.parametrize("kind", [DroppedPassThrough, UnequalExperts, EveryChoiceAgain])
def test_a_number_that_differs_between_tokens_is_a_range_with_its_mean(kind: Any) -> None:
    layer, hidden = make(kind), states()
    with torch.no_grad():
        table = layer.table(hidden.reshape(-1, WIDTH))
    sizes = [EXPERT, 12 * 60 + 60 + 60 * 12 + 12, 12 * 12 + 12, 0]
    if kind is not UnequalExperts:
        sizes = [EXPERT] * NUM_EXPERTS
    fewest, most, mean = count_by_table(table, sizes)
    assert fewest < mean < most

    inspected = inspect_model(layer, recording=record(layer, hidden))

    assert active_of(inspected) == ActiveRange(ROUTER + fewest, ROUTER + most)
    assert f"a recorded token runs {ROUTER + mean:,.0f} parameters" in said(inspected)
    assert (inspected.top_k is None) == (kind is not UnequalExperts)


def test_unequal_experts_give_a_range_for_a_number() -> None:
    inspected = inspect_model(make(UnequalExperts), top_k=2)
    assert active_of(inspected) == ActiveRange(ROUTER + 0 + 156, ROUTER + 512 + 1512)


FUSED = HIDDEN_SIZE * INNER_SIZE * 2


@pytest.mark.parametrize("kind", [Fused, Gathered, DispatchAndCombine, GateOfItsOwn])
def test_fused_parameters_are_those_of_their_experts(kind: Callable[[], nn.Module]) -> None:
    inspected = inspect_model(make(kind), top_k=2)
    router = HIDDEN_SIZE * 6
    assert total_of(inspected) == router + 6 * FUSED
    assert active_of(inspected) == ActiveRange(router + 2 * FUSED, router + 2 * FUSED)
    assert inspected.expert_params == FUSED
    assert inspected.num_experts == 6


def test_a_mixture_of_all_experts_runs_them_all() -> None:
    layer = make(Mixture)
    recording = record(layer, torch.randn(2, 5, HIDDEN_SIZE))
    inspected = inspect_model(layer, recording=recording.to_frame())
    active = active_of(inspected)
    assert active is not None
    assert active.exact == total_of(inspected)
    assert inspected.top_k == 6


class BiasedExperts(nn.Module):
    """Stacks biases too, and a scale that all experts share."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.w1, self.b1 = nn.Parameter(torch.randn(4, WIDTH, 20)), nn.Parameter(torch.randn(4, 20))
        self.w2, self.b2 = (
            nn.Parameter(torch.randn(4, 20, WIDTH)),
            nn.Parameter(torch.randn(4, WIDTH)),
        )
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.gate(x).softmax(-1).topk(2)
        inner = torch.einsum("...d,...kdf->...kf", x, self.w1[ids]).add(self.b1[ids]).relu()
        outputs = torch.einsum("...kf,...kfd->...kd", inner, self.w2[ids]) + self.b2[ids]
        total: Tensor = self.scale * (weights[..., None] * outputs).sum(-2)
        return total


def test_biases_belong_to_their_experts_and_a_scale_to_none() -> None:
    layer = make(BiasedExperts)
    inspected = inspect_model(layer, recording=record(layer, states()))
    rest = 12 * 4 + 4 + 12
    assert total_of(inspected) == rest + 4 * EXPERT
    assert active_of(inspected) == ActiveRange(rest + 2 * EXPERT, rest + 2 * EXPERT)


@pytest.mark.parametrize("kind", [GateOutside, WithoutBlock, GateInHolder])
def test_a_router_outside_of_the_block_changes_no_count(kind: Any) -> None:
    model = make(kind)
    given = states() if kind is GateInHolder else torch.arange(12).view(2, 6)
    inspected = inspect_model(model, recording=record(model, given))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total_of(inspected) == total
    assert active_of(inspected) == ActiveRange(total - 2 * EXPERT, total - 2 * EXPERT)


def test_a_gpt_has_components_and_each_layer_its_own_number() -> None:
    model = make(lambda: Gpt(Layer(), Layer(), Layer()))
    numbers = {"h.0.moe": 1, "h.1.moe.experts": 2, "h.2.moe": 4}
    inspected = inspect_model(model, top_k=numbers)
    assert inspected.parameters is not None
    per_block = 3 * 12 * 12 + 3 * 12 + 12 * 12 + 12
    assert {name: n for name, n in inspected.parameters.components.items() if n} == {
        "embedding": 32 * 12,
        "lm_head": 32 * 12,
        "mixer": 3 * per_block,
        "router": 3 * ROUTER,
        "routed_experts": 12 * EXPERT,
        "norm": 3 * 2 * 24,
    }
    active = inspected.parameters.active_components["routed_experts"]
    assert active == ActiveRange(7 * EXPERT, 7 * EXPERT)
    by_layer = {row.layer: row.active_params for row in inspected.rows if "routed" in row.component}
    assert by_layer == {0: EXPERT, 1: 2 * EXPERT, 2: 4 * EXPERT}
    assert inspected.top_k == (1, 2, 4)
    assert inspected.parameters.is_tied is False
    # Two are known, and the third is not.
    partly = inspect_model(model, top_k={"h.0.moe": 1, "h.2.moe": 4})
    assert active_of(partly) is None
    assert "'h.1.moe.experts'" in said(partly)
    assert [row.active_params for row in partly.rows if "routed" in row.component] == [
        EXPERT,
        None,
        4 * EXPERT,
    ]
