"""Models around routed layers, whose gate or experts lie where a recorder may not expect them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.tracing.own_layers.modules.layers import (
    NUM_EXPERTS,
    TOP_K,
    WIDTH,
    Layer,
    Tensor,
    feed_forward,
)

VOCAB_SIZE = 32


class GptBlock(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.moe = layer

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.ln1(x)
        x = x + self.attn(hidden, hidden, hidden, need_weights=False)[0]
        output = self.moe(self.ln2(x))
        added: Tensor = output[0] if isinstance(output, tuple) else output
        return x + added


class Gpt(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.h = nn.ModuleList(map(GptBlock, layers))
        self.lm_head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx)
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(x)
        return logits


class GivenScores(Layer):
    """Gets the scores of a gate that lies outside."""

    def __init__(self) -> None:
        super().__init__()
        del self.gate

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        return self.mix(x.reshape(-1, WIDTH), scores.reshape(-1, NUM_EXPERTS)).view_as(x)


class GateOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.router = nn.Linear(WIDTH, NUM_EXPERTS)
        self.moe = GivenScores()

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        output: Tensor = self.moe(x, scores=self.router(x))
        return output

    def scores(self, idx: Tensor) -> Tensor:
        scores: Tensor = self.router(self.embed(idx)).flatten(0, 1)
        return scores


class WithoutBlock(GateOutside):
    """The model holds the experts itself, between other layers."""

    def __init__(self) -> None:
        super().__init__()
        del self.moe
        self.mixture: Any = nn.ModuleDict(
            {"experts": nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))}
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        weights, ids = self.router(x).topk(TOP_K, dim=-1)
        dense = torch.zeros(*x.shape[:-1], NUM_EXPERTS).scatter(-1, ids, weights.softmax(dim=-1))
        total = torch.zeros_like(x)
        for number, expert in enumerate(self.mixture["experts"]):
            total = total + dense[..., number, None] * expert(x)
        logits: Tensor = self.head(self.norm(x + total))
        return logits


class AddsClassToken(Layer):
    """Puts a class token before those that it gets, and routes it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))

    def extend(self, x: Tensor) -> Tensor:
        return torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.extend(x)
        return x + self.mix(x.flatten(0, 1), self.score(x.flatten(0, 1))).view_as(x)


class GateInHolder(nn.Module):
    """The list of experts has a holder without a forward; its owner routes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Layer()
        self.holder = nn.Module()
        self.holder.experts = self.inner.experts
        del self.inner.experts
        self.gate = self.inner.gate
        del self.inner

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        weights, ids = scores.topk(TOP_K, dim=-1)
        dense = torch.zeros_like(scores).scatter(-1, ids, weights.softmax(dim=-1))
        experts: Any = self.holder.experts
        outputs = torch.stack([expert(x) for expert in experts], dim=-2)
        return x + (dense[..., None] * outputs).sum(dim=-2)
