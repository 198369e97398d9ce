"""Experts that run several times, weights that are tied, and adapters are counted once, where they run."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from moetool import inspect_model
from moetool.anatomy.parameters import ActiveRange
from tests.inspection.structure.test_own_layers import (
    EXPERT,
    FUSED,
    ROUTER,
    active_of,
    record,
    said,
    total_of,
)
from tests.tiny_models import FAMILIES, build_model
from tests.tracing.own_layers.modules.layers import NUM_EXPERTS, WIDTH, Layer, Tensor
from tests.tracing.own_layers.modules.models import Gpt
from tests.tracing.own_layers.recording import make, states
from tests.tracing.recording.operations.blocks import Gathered

RANK = 2


class ThreeTimes(nn.Module):
    """Runs the same layer three times in a call."""

    moe: Any

    def __init__(self) -> None:
        super().__init__()
        self.moe = Layer()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.moe(x)
        return x

    def count_chosen(self, x: Tensor) -> Tensor:
        """Return how many different experts each token runs."""
        ran = torch.zeros(x[..., 0].numel(), NUM_EXPERTS, dtype=torch.bool)
        for _ in range(3):
            ran |= ~self.moe.table(x.reshape(-1, WIDTH)).isnan()
            x = x + self.moe(x)
        return ran.sum(dim=1)


class AtThreePlaces(ThreeTimes):
    """Holds the same layer at three places, two of them in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LayerNorm(WIDTH), self.moe, self.moe])


@pytest.mark.parametrize("kind", [ThreeTimes, AtThreePlaces])
def test_a_layer_that_runs_three_times_has_each_expert_once(kind: type[ThreeTimes]) -> None:
    model: Any = make(kind)
    with torch.no_grad():
        chosen = model.count_chosen(states())
    assert len(set(chosen.tolist())) > 1
    inspected = inspect_model(model, recording=record(model, states()))
    rest = ROUTER if kind is ThreeTimes else ROUTER + 24
    assert total_of(inspected) == rest + 4 * EXPERT
    assert active_of(inspected) == ActiveRange(
        rest + int(chosen.min()) * EXPERT, rest + int(chosen.max()) * EXPERT
    )
    mean = rest + float(chosen.float().mean()) * EXPERT
    assert f"a recorded token runs {mean:,.0f} parameters" in said(inspected)
    # Each run chooses two.
    assert inspected.top_k == 2


def test_a_number_says_what_one_run_chooses_and_each_place_may_be_a_run() -> None:
    once = inspect_model(make(ThreeTimes), top_k=2)
    assert active_of(once) == ActiveRange(ROUTER + 2 * EXPERT, ROUTER + 2 * EXPERT)
    assert "one run of each routed block" in said(once)
    places = inspect_model(make(AtThreePlaces), top_k=1)
    rest = ROUTER + 24
    assert active_of(places) == ActiveRange(rest + EXPERT, rest + 3 * EXPERT)
    assert "3 places hold the same experts" in said(places)


def tie(first: Layer, second: Layer, *, num_experts: int) -> None:
    for one, other in list(zip(first.experts, second.experts, strict=True))[:num_experts]:
        for inner, tied in zip(one, other, strict=True):
            if isinstance(inner, nn.Linear):
                inner.weight, inner.bias = tied.weight, tied.bias


def make_tied(num_experts: int) -> Any:
    model = make(lambda: Gpt(Layer(), Layer()))
    tie(model.h[0].moe, model.h[1].moe, num_experts=num_experts)
    return model


def test_layers_that_share_their_experts_may_choose_the_same_or_others() -> None:
    model = make_tied(NUM_EXPERTS)
    rest = sum(p.numel() for p in model.parameters()) - 4 * EXPERT
    given = inspect_model(model, top_k=1)
    assert total_of(given) == rest + 4 * EXPERT
    assert active_of(given) == ActiveRange(rest + EXPERT, rest + 2 * EXPERT)

    recorder = record(model, torch.arange(12).view(2, 6))
    frame = recorder.to_frame()
    chosen = frame.groupby(["batch_index", "position"])["expert"].nunique()
    assert chosen.min() < chosen.max()
    recorded = inspect_model(model, recording=frame)
    assert active_of(recorded) == ActiveRange(
        rest + chosen.min() * EXPERT, rest + chosen.max() * EXPERT
    )


def test_layers_that_share_some_of_their_experts_leave_active_parameters_unknown() -> None:
    model = make_tied(2)
    inspected = inspect_model(model, top_k=1)
    assert total_of(inspected) == sum(p.numel() for p in model.parameters())
    assert active_of(inspected) is None
    assert "share a part of their parameters" in said(inspected)


def test_what_all_experts_of_a_layer_share_is_run_by_every_token() -> None:
    layer = make(Layer)
    for expert in layer.experts[1:]:
        expert[2] = layer.experts[0][2]
    inspected = inspect_model(layer, top_k=2)
    first, last = 12 * 20 + 20, 20 * 12 + 12
    assert total_of(inspected) == ROUTER + 4 * first + last
    assert active_of(inspected) == ActiveRange(*[ROUTER + 2 * first + last] * 2)


def test_a_tied_head_is_counted_once() -> None:
    model = make(lambda: Gpt(Layer()))
    before = total_of(inspect_model(model))
    model.lm_head.weight = model.wte.weight
    inspected = inspect_model(model)
    assert before is not None
    assert total_of(inspected) == before - 32 * 12
    assert inspected.parameters is not None
    assert inspected.parameters.is_tied


def adapt(model: Any, **targets: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        config = peft.LoraConfig(r=RANK, init_lora_weights=False, **targets)
        return peft.get_peft_model(model, config).eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_adapted_model_runs_the_updates_of_the_experts_that_it_runs() -> None:
    plain = inspect_model(build_model("mixtral"))
    names = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
    model = adapt(build_model("mixtral"), target_modules=["q_proj"], target_parameters=names)
    inspected = inspect_model(model)
    assert plain.parameters is not None
    assert inspected.parameters is not None
    updates = {n: p.numel() for n, p in model.named_parameters() if "lora" in n}
    of_experts = sum(n for name, n in updates.items() if "experts" in name)
    assert 0 < of_experts < sum(updates.values())
    assert plain.parameters.active_params is not None
    assert total_of(inspected) == sum(p.numel() for p in model.parameters())
    of_others = sum(updates.values()) - of_experts
    share = plain.top_k / plain.num_experts  # type: ignore[operator]
    active = plain.parameters.active_params + of_others + of_experts * share
    assert active_of(inspected) == ActiveRange(*[int(active)] * 2)
    assert inspected.top_k == plain.top_k


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters_of_own_experts_belong_to_each() -> None:
    of_list = adapt(make(Layer), target_modules=r"experts\.\d+\.0")
    update = RANK * (12 + 20)
    assert active_of(inspect_model(of_list, top_k=2)) == ActiveRange(
        *[ROUTER + 2 * (EXPERT + update)] * 2
    )
    of_stacks = adapt(
        nn.ModuleDict({"moe": make(Gathered)}),
        target_modules=[],
        target_parameters=["moe.w1", "moe.w2"],
    )
    inspected = inspect_model(of_stacks, top_k=2)
    update = 2 * RANK * (16 + 24)
    assert total_of(inspected) == 96 + 6 * (FUSED + update)
    assert active_of(inspected) == ActiveRange(*[96 + 2 * (FUSED + update)] * 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_model_of_transformers_runs_what_its_configuration_says(family: str) -> None:
    model: Any = build_model(family)
    expected = inspect_model(model).parameters
    recorder = record(model, torch.arange(3, 11).view(1, 8))
    found = inspect_model(model, recording=recorder).parameters
    assert expected is not None
    assert found is not None
    assert found.total == expected.total
    assert found.components == expected.components
    assert found.active == expected.active


class HiddenExperts(nn.Module):
    """Its experts are closures over weights that it keeps elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Identity() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.gate(x).softmax(-1).topk(2)
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
        total: Tensor = x * (weights * scale[ids]).sum(-1, keepdim=True)
        return total


class HiddenUpdates(HiddenExperts):
    """Keeps updates of its experts in a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = {f"expert {n}": nn.Linear(WIDTH, 3) for n in range(4)}


def test_parameters_that_torch_does_not_find_are_reported_as_not_counted() -> None:
    inspected = inspect_model(HiddenUpdates())
    assert total_of(inspected) == 12 * 4 + 4
    assert f"Not counted: {4 * (12 * 3 + 3)} parameters" in said(inspected)
    assert active_of(inspected) is None


def test_experts_without_parameters_leave_active_parameters_unknown() -> None:
    inspected = inspect_model(HiddenExperts())
    assert total_of(inspected) == 12 * 4 + 4
    assert active_of(inspected) is None
    assert "unknown" in said(inspected)
    assert "ense" not in said(inspected)


class Renaming(nn.Module):
    """Names the parameters of a model as the model itself does."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = make(Layer)

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        return self.wrapped.named_parameters(*args, **options)


def test_a_wrapper_that_renames_parameters_changes_no_count() -> None:
    inspected = inspect_model(Renaming(), top_k=2)
    assert total_of(inspected) == ROUTER + 4 * EXPERT
    assert active_of(inspected) == ActiveRange(*[ROUTER + 2 * EXPERT] * 2)
