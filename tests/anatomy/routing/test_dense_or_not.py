"""A model is called dense if nothing in it can route, and only then."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

import accelerate
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool import RoutingRecorder
from moetool.anatomy.routing.moe_layers import find_experts, find_moe_layers
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import DenseModelError, UntraceableError
from tests.anatomy.routing.own_ways import (
    BLOCKS,
    INNER,
    NUM_EXPERTS,
    OBSERVED,
    PROPOSED,
    WIDTH,
    Adapters,
    Model,
    Peer,
    Tensor,
    call,
    feed_forward,
)
from tests.families.tiny.models import available
from tests.families.tiny.proof import unreadable_families
from tests.tiny_models import DENSE_FAMILY, build_model


@pytest.mark.parametrize("block", BLOCKS)
def test_a_model_that_routes_in_its_own_way_is_not_called_dense(
    block: Callable[[], nn.Module],
) -> None:
    model = Model(feed_forward(), block())
    assert model(torch.arange(6)[None]).shape == (6, 16)

    with pytest.raises(UntraceableError) as caught:
        RoutingRecorder(model, allow_inexact=True)

    assert caught.value.exit_code == 5
    assert "dense" not in caught.value.message
    assert all(fact.startswith("seen: layers.1.ff") for fact in caught.value.facts)
    assert caught.value.facts


@pytest.mark.parametrize("block", PROPOSED)
def test_modules_that_may_be_experts_are_proposed_and_proven(
    block: Callable[[], nn.Module],
) -> None:
    model = Model(feed_forward(), block())

    with RoutingRecorder(model) as recorder:
        model(torch.arange(6)[None])

    (layer,) = recorder.layers
    assert (layer.layer, layer.block_path) == (1, "layers.1.ff")
    weights = recorder.to_frame().groupby("position")["weight"].sum()
    assert weights.to_numpy() == pytest.approx(1)
    # Nothing is claimed about them without a call.
    assert not find_experts(model).layers


@pytest.mark.parametrize("block", OBSERVED)
def test_stacked_experts_are_proposed_and_observed(block: Callable[[], nn.Module]) -> None:
    model = Model(feed_forward(), block())

    with RoutingRecorder(model) as recorder:
        model(torch.arange(6)[None])

    (layer,) = recorder.layers
    assert (layer.layer, layer.block_path) == (1, "layers.1.ff")
    assert (layer.rule, layer.num_experts) == (RoutingRule.OPERATIONS, NUM_EXPERTS)
    assert recorder.to_frame()["position"].nunique() == 6
    assert not find_experts(model).layers


def test_peer_is_refused_by_its_own_name() -> None:
    with pytest.raises(UntraceableError) as caught:
        find_moe_layers(Model(Peer()))

    said = " ".join((caught.value.message, caught.value.hint, *caught.value.facts))
    assert "layers.0.ff (Peer)" in said
    assert "Doge" not in said


def test_adapters_among_which_a_dense_models_tokens_choose_are_seen() -> None:
    model: Any = build_model(DENSE_FAMILY)
    layer = model.model.layers[1]
    layer.mlp = Adapters(layer.mlp, model.config.hidden_size)

    (layer,) = RoutingRecorder(model).layers

    assert layer.block_path == "model.layers.1.mlp"
    assert layer.members[1] == ("lora_A.1", "lora_B.1")


def test_a_forward_put_in_the_place_of_a_modules_own_is_read() -> None:
    model: Any = build_model(DENSE_FAMILY)
    mlp = model.model.layers[1].mlp
    # As MixLoRA's library does it: torch sees neither the adapters nor their router.
    adapters = {"first": Adapters(mlp, model.config.hidden_size)}
    mlp.adapters = adapters
    mlp.forward = adapters["first"].forward

    with pytest.raises(UntraceableError) as caught:
        RoutingRecorder(model)

    assert any("lora_A" in fact for fact in caught.value.facts)


def choose_neurons(self: Any, x: Tensor) -> Tensor:
    best = x.topk(2).indices
    return call(self.down_proj, self.up_proj(x).scatter(-1, best, 0))


def test_a_function_put_in_the_place_of_a_forward_is_read() -> None:
    model: Any = build_model(DENSE_FAMILY)
    mlp = model.model.layers[1].mlp
    mlp.forward = types.MethodType(choose_neurons, mlp)

    with pytest.raises(UntraceableError) as caught:
        RoutingRecorder(model)

    assert caught.value.facts == (
        "seen: model.layers.1.mlp: the forward of choose_neurons calls topk",
    )


def test_code_that_cant_be_read_proves_nothing() -> None:
    model = Model(feed_forward())
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        cast(Any, model.layers[0]).ff = torch.jit.trace(feed_forward(), torch.zeros(1, WIDTH))

    with pytest.raises(UntraceableError, match="No routed experts were recognised") as caught:
        find_moe_layers(model)

    assert any("can't be read" in fact for fact in caught.value.facts)


class Separate(nn.Module):
    """A block that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, NUM_EXPERTS)
        self.experts = nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_layer_that_routes_in_its_own_way_is_not_passed_over_among_others(
    block: Callable[[], nn.Module],
) -> None:
    assert len(find_moe_layers(Model(Separate(), feed_forward()))) == 1

    with pytest.raises(UntraceableError):
        find_moe_layers(Model(Separate(), block()))


@pytest.mark.parametrize("block", [*PROPOSED, *OBSERVED])
def test_proposed_experts_are_not_passed_over_among_others(block: Callable[[], nn.Module]) -> None:
    layers = find_moe_layers(Model(Separate(), block()))

    assert [layer.layer for layer in layers] == [0, 1]


@pytest.mark.parametrize("value", [8, [8, 8], True])
def test_a_configuration_that_states_experts_which_its_class_has_no_use_for_leaves_doubt(
    value: object,
) -> None:
    model: Any = build_model(DENSE_FAMILY)
    model.config.num_experts = value

    with pytest.raises(UntraceableError) as caught:
        find_moe_layers(model)

    assert caught.value.facts == (f"seen: the configuration: num_experts is {value}",)


@pytest.mark.parametrize("value", [0, 1, None, False, []])
def test_a_configuration_that_states_no_experts_leaves_none(value: object) -> None:
    model: Any = build_model(DENSE_FAMILY)
    model.config.num_experts = value

    with pytest.raises(DenseModelError):
        find_moe_layers(model)


class Gated(nn.Module):
    """A gated MLP: a gate alone is not a router."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, INNER)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return call(self.down, F.silu(self.gate(x)) * self.up(x))


class Deep(nn.Module):
    """Numbered square layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(feed_forward() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.fc2(self.norm1(self.fc1(x))))
        for block in self.blocks:
            x = block(x)
        return x


class HeadsAttention(nn.Module):
    """Stacks a matrix for each head, as TransformerLens does."""

    def __init__(self, *, chooses_heads: bool = False) -> None:
        super().__init__()
        self.W_Q = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, INNER))
        self.W_O = nn.Parameter(torch.randn(NUM_EXPERTS, INNER, WIDTH))
        self.b_Q = nn.Parameter(torch.zeros(NUM_EXPERTS, INNER))
        if chooses_heads:
            self.W_G = nn.Parameter(torch.randn(WIDTH, NUM_EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        queries = torch.einsum("td,hdf->thf", x, self.W_Q) + self.b_Q
        return torch.einsum("thf,hfd->td", queries, self.W_O)


def test_the_heads_of_attention_are_experts_only_if_something_scores_them() -> None:
    assert len(find_moe_layers(Model(Separate(), HeadsAttention()))) == 1
    with pytest.raises(DenseModelError):
        find_moe_layers(Model(HeadsAttention()))
    found = find_experts(Model(HeadsAttention(chooses_heads=True)))
    assert any("W_Q" in sign.seen for sign in found.signs)


class Wrapper(nn.Module):
    """Holds a block, a part of it under a second path, and something that is called next to them."""

    def __init__(self, block: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.hook_router_scores, self.gate = nn.Identity(), inner
        self.original = block

    def forward(self, x: Tensor) -> Tensor:
        return call(self.hook_router_scores, self.original(x))


def test_a_wrappers_second_path_to_a_router_is_not_another_layer() -> None:
    block: Any = Separate()
    block.gate.num_experts = NUM_EXPERTS
    (layer,) = find_moe_layers(Model(Wrapper(block, block.gate)))
    assert layer.block_path == "layers.0.ff.original"
    other = nn.Linear(WIDTH, NUM_EXPERTS)
    vars(other)["num_experts"] = NUM_EXPERTS
    with pytest.raises(UntraceableError):
        find_moe_layers(Model(Wrapper(block, other)))


@pytest.mark.parametrize("block", [feed_forward, Gated, Deep])
def test_hand_written_dense_models_are_called_dense(block: Callable[[], nn.Module]) -> None:
    with pytest.raises(DenseModelError):
        find_moe_layers(Model(block(), block(), block()))


def test_a_dense_model_is_dense_under_accelerates_hooks_and_after_them() -> None:
    model = build_model(DENSE_FAMILY)
    accelerate.cpu_offload(model, execution_device="cpu")

    with pytest.raises(DenseModelError):
        find_moe_layers(model)


def test_no_family_that_is_read_has_anything_else_that_might_route() -> None:
    from tests.anatomy.counting import build_family_skeleton

    left = {name: find_experts(build_family_skeleton(name)).signs for name in available()}

    assert {name for name, signs in left.items() if signs} == unreadable_families() & left.keys()
