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
from moetool.errors import DenseModelError, UntraceableError
from tests.families.tiny.models import available
from tests.families.tiny.proof import unreadable_families
from tests.tiny_models import DENSE_FAMILY, build_model

WIDTH, INNER, NUM_EXPERTS, TOP_K = 8, 12, 4, 2
Tensor = torch.Tensor


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, INNER), nn.SiLU(), nn.Linear(INNER, WIDTH))


def call(module: nn.Module, *args: Tensor) -> Tensor:
    return cast(Tensor, module(*args))


class Routed(nn.Module):
    """Has a router with a meaningless name, and mixes what `compute` makes of each choice."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, NUM_EXPERTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.score(x).softmax(-1).topk(TOP_K, dim=-1)
        return sum((weights[:, [k]] * self.compute(x, ids[:, k]) for k in range(TOP_K)), 0 * x)

    def compute(self, x: Tensor, ids: Tensor) -> Tensor:
        raise NotImplementedError


class FusedInBlock(Routed):
    """One parameter of three dimensions for each matrix, in the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, INNER))
        self.w2 = nn.Parameter(torch.randn(NUM_EXPERTS, INNER, WIDTH))

    def compute(self, x: Tensor, ids: Tensor) -> Tensor:
        inner = torch.einsum("td,tdf->tf", x, self.w1[ids]).relu()
        return torch.einsum("tf,tfd->td", inner, self.w2[ids])


class LaidUnderEachOther(Routed):
    """Matrices of all experts in one of two dimensions, as DBRX has them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(NUM_EXPERTS * INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(NUM_EXPERTS * INNER, WIDTH))

    def compute(self, x: Tensor, ids: Tensor) -> Tensor:
        up = self.up.view(NUM_EXPERTS, INNER, WIDTH)[ids]
        down = self.down.view(NUM_EXPERTS, INNER, WIDTH)[ids]
        return torch.einsum("tf,tfd->td", torch.einsum("td,tfd->tf", x, up).relu(), down)


class ListOfFfns(nn.Module):
    """A soft mixture of all: nothing is chosen, and a token may well be sent by its largest score."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, NUM_EXPERTS)
        self.ffns = nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return sum((weights[:, [i]] * f(x) for i, f in enumerate(self.ffns)), torch.zeros_like(x))


class NumberedChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, NUM_EXPERTS)
        for number in range(NUM_EXPERTS):
            self.add_module(f"expert_{number}", feed_forward())

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).max(-1).indices
        every = torch.stack([call(getattr(self, f"expert_{i}"), x) for i in range(NUM_EXPERTS)])
        chosen: Tensor = every[best, torch.arange(len(x))]
        return chosen


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(WIDTH, 2)
        self.ffn1, self.ffn2 = feed_forward(), feed_forward()

    def forward(self, x: Tensor) -> Tensor:
        first = call(self.choose, x).softmax(-1)[:, :1]
        return first * call(self.ffn1, x) + (1 - first) * call(self.ffn2, x)


class FusedNetwork(nn.Module):
    """As Tutel's `FusedExpertsNetwork` keeps the experts of one device."""

    def __init__(self) -> None:
        super().__init__()
        self.batched_fc1_w = nn.Parameter(torch.randn(NUM_EXPERTS, INNER, WIDTH))
        self.batched_fc2_w = nn.Parameter(torch.randn(NUM_EXPERTS, INNER, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x, self.batched_fc1_w.mT).relu(), self.batched_fc2_w)


class TutelLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_local_experts = NUM_EXPERTS
        self.experts = FusedNetwork()
        self.gates = nn.ModuleList([nn.Linear(WIDTH, NUM_EXPERTS, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        best = self.gates[0](x).softmax(-1).argmax(-1)
        chosen = F.one_hot(best, NUM_EXPERTS).to(x)
        return torch.einsum("te,etd->td", chosen, self.experts(x.expand(NUM_EXPERTS, *x.shape)))


def send_to_two(scores: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = scores.topk(TOP_K)
    return weights, ids


def dispatch_by(scores: Tensor) -> tuple[Tensor, Tensor]:
    return send_to_two(scores)


class ChoiceInAFunction(Routed):
    """Neither the module's code nor its names show a choice: a function that it calls makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Linear(WIDTH, NUM_EXPERTS * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = dispatch_by(call(self.score, x))
        outputs = call(self.bank, x).view(len(x), NUM_EXPERTS, WIDTH)
        return (outputs[torch.arange(len(x))[:, None], ids] * weights[..., None]).sum(1)


class Peer(nn.Module):
    """Experts of one neuron, retrieved by product keys, under the names of lucidrains' PEER."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.num_experts, self.num_keys = 2, 16, 4
        self.weight_down_embed = nn.Embedding(self.num_experts, WIDTH)
        self.weight_up_embed = nn.Embedding(self.num_experts, WIDTH)
        self.keys = nn.Parameter(torch.randn(self.heads, self.num_keys, 2, WIDTH // 2))
        self.to_queries = nn.Linear(WIDTH, 2 * self.heads * WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.to_queries(x).view(len(x), 2, self.heads, -1)
        scores = torch.einsum("tphn,hkpn->pthk", queries, self.keys)
        ids = scores[0].argmax(-1) * self.num_keys + scores[1].argmax(-1)
        inner = torch.einsum("td,thd->th", x, self.weight_down_embed(ids)).relu()
        return torch.einsum("th,thd->td", inner, self.weight_up_embed(ids))


class Adapters(nn.Module):
    """Low-rank updates of a dense MLP, chosen for every token, as MixLoRA has them."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.pick = nn.Linear(width, NUM_EXPERTS, bias=False)
        self.lora_A = nn.ModuleList(nn.Linear(width, 2, bias=False) for _ in range(NUM_EXPERTS))
        self.lora_B = nn.ModuleList(nn.Linear(2, width, bias=False) for _ in range(NUM_EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights = call(self.pick, x).softmax(-1)
        updates = [b(a(x)) for a, b in zip(self.lora_A, self.lora_B, strict=True)]
        return call(self.mlp, x) + (torch.stack(updates, -1) * weights[..., None, :]).sum(-1)


BLOCKS = [
    *(FusedInBlock, LaidUnderEachOther, ListOfFfns, NumberedChildren, TwoBranches),
    *(TutelLayer, ChoiceInAFunction, Peer),
]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return call(self.out, F.scaled_dot_product_attention(q[None], k[None], v[None])[0])


class Layer(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.ff = Attention(), block

    def forward(self, x: Tensor) -> Tensor:
        x = x + call(self.attn, self.ln1(x))
        return x + call(self.ff, self.ln2(x))


class Model(nn.Module):
    """A model of hand-written layers."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, WIDTH)
        self.layers = nn.ModuleList(map(Layer, blocks))
        self.head = nn.Linear(WIDTH, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids.flatten())
        for layer in self.layers:
            x = layer(x)
        return call(self.head, x)


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

    with pytest.raises(UntraceableError, match="No routed experts were recognised in Llama"):
        RoutingRecorder(model)


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
