"""Modules that route in their own way."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

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


# Their experts are modules, of which the recorder proves that they are routed to.
PROPOSED = [ListOfFfns, NumberedChildren, TwoBranches]
# Their experts are stacked matrices, of which the recorder observes what they meet.
OBSERVED = [FusedInBlock, TutelLayer]
BLOCKS = [LaidUnderEachOther, ChoiceInAFunction, Peer]


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
