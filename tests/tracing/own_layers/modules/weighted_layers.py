"""Layers whose weights multiply what experts receive, as in Llama 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.tracing.own_layers.modules.layers import (
    INNER,
    NUM_EXPERTS,
    TOP_K,
    WIDTH,
    Layer,
    LayersInLists,
    RouterParameter,
    Surrounded,
    Tensor,
    top_k_table,
)


class WeighsInput(Layer):
    """Multiplies the rows of each expert by their weights; others vary a part."""

    def enter(self, x: Tensor) -> Tensor:
        return x

    def leave(self, total: Tensor, x: Tensor) -> Tensor:
        del x
        return total

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        weights = weights.softmax(dim=-1)
        output = torch.zeros_like(rows)
        for expert in range(self.num_experts):
            tokens, places = torch.where(ids == expert)
            if len(tokens):
                weighted = self.weigh(rows[tokens], weights[tokens, places, None])
                output[tokens] += self.run(expert, weighted)
        return output

    def weigh(self, rows: Tensor, weights: Tensor) -> Tensor:
        return rows * weights


class WeighsInPlace(WeighsInput):
    def weigh(self, rows: Tensor, weights: Tensor) -> Tensor:
        rows *= weights
        return rows


class DropsAfterwards(WeighsInput):
    """Drops numbers of the weighted rows, while it trains."""

    def weigh(self, rows: Tensor, weights: Tensor) -> Tensor:
        return F.dropout(rows * weights, 0.2, self.training)


class AllExpertsRun(WeighsInput):
    """Runs every expert on every token, as transformers' Llama 4 does; most rows are zeros."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        dense = torch.zeros_like(scores).scatter(1, ids, weights.softmax(dim=-1))
        weighted = rows.repeat(NUM_EXPERTS, 1) * dense.T.reshape(-1, 1)
        parts = weighted.chunk(NUM_EXPERTS)
        return torch.stack([self.run(n, part) for n, part in enumerate(parts)]).sum(dim=0)


class WeighsAllAtOnce(WeighsInput):
    """Sends each token to one expert, and weighs all tokens before."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, best = scores.sigmoid().max(dim=-1)
        weighted, output = rows * weights[:, None], torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            output[best == expert] = self.run(expert, weighted[best == expert])
        return output

    def table(self, rows: Tensor) -> Tensor:
        weights = self.score(rows).sigmoid()
        return weights.masked_fill(weights < weights.amax(dim=-1, keepdim=True), torch.nan)


class ParameterWeighs(WeighsInput, RouterParameter):
    pass


class ListsWeigh(WeighsInput, LayersInLists):
    pass


class SurroundedWeighs(Surrounded, WeighsInput):
    """Norms what goes in, before weights multiply it, and what comes out."""

    def enter(self, x: Tensor) -> Tensor:
        return Surrounded.enter(self, x)

    def leave(self, total: Tensor, x: Tensor) -> Tensor:
        normed: Tensor = self.norm_out(self.proj_out(total))
        return x + 0.5 * normed


class WeightsAndIds(nn.Module):
    """A router that returns no score for every expert."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, NUM_EXPERTS, bias=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = self.linear(rows).topk(TOP_K, dim=-1)
        return weights.softmax(dim=-1), ids


class RouterHidesScores(WeighsInput):
    def __init__(self) -> None:
        super().__init__()
        self.gate = WeightsAndIds()

    def forward(self, x: Tensor) -> Any:
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.gate(rows)
        output = torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            tokens, places = torch.where(ids == expert)
            if len(tokens):
                output[tokens] += self.run(expert, rows[tokens] * weights[tokens, places, None])
        return output.view_as(x)

    def table(self, rows: Tensor) -> Tensor:
        return top_k_table(self.gate.linear(rows))


class StackedWeigh(WeighsInput):
    """Experts are matrices that the layer stacks."""

    def add_experts(self) -> None:
        self.w1 = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, INNER) / 3)
        self.w2 = nn.Parameter(torch.randn(NUM_EXPERTS, INNER, WIDTH) / 3)

    def run(self, expert: int, rows: Tensor) -> Tensor:
        return F.silu(rows @ self.w1[expert]) @ self.w2[expert]


class StackedAllRun(StackedWeigh):
    mix = AllExpertsRun.mix


class StackedGrouped(StackedWeigh):
    """torchtitan's `score_before_experts`: sorted rows are weighed in float32."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=NUM_EXPERTS)
        factors = weights.softmax(dim=-1).flatten()[order, None]
        weighted = (rows[order // TOP_K].double() * factors).to(rows.dtype)
        parts = weighted.split(counts.tolist())
        outputs = torch.cat([self.run(expert, part) for expert, part in enumerate(parts)])
        return torch.zeros_like(rows).index_add(0, order // TOP_K, outputs)


class StackedDispatch(StackedWeigh):
    """Sends rows to slots by a product with weights instead of a mask."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        chosen = F.one_hot(ids, NUM_EXPERTS)  # (num_tokens, top_k, num_experts)
        slots = F.one_hot((chosen.sum(dim=1).cumsum(dim=0) - 1).clamp(min=0), len(rows))
        dispatch = torch.einsum(
            "tk,tke,tes->est", weights.softmax(dim=-1), chosen.to(rows), slots.to(rows)
        )
        made = torch.stack([self.run(n, part) for n, part in enumerate(dispatch @ rows)])
        return torch.einsum("est,esd->td", (dispatch > 0).to(rows), made)


class ScalesOutputToo(WeighsInput):
    """Multiplies what comes out by the weights as well."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        weights = weights.softmax(dim=-1)
        output = torch.zeros_like(rows)
        for expert in range(self.num_experts):
            tokens, places = torch.where(ids == expert)
            if len(tokens):
                factor = weights[tokens, places, None]
                output[tokens] += factor * self.run(expert, factor * rows[tokens])
        return output


class StackedBothWays(StackedWeigh):
    mix = ScalesOutputToo.mix


LAYERS: dict[str, type[WeighsInput]] = {
    "rows of each expert": WeighsInput,
    "in place": WeighsInPlace,
    "dropout afterwards": DropsAfterwards,
    "all experts run": AllExpertsRun,
    "all tokens at once": WeighsAllAtOnce,
    "a parameter routes": ParameterWeighs,
    "layers in lists": ListsWeigh,
    "surrounded": SurroundedWeighs,
    "a router without scores": RouterHidesScores,
    "stacked matrices": StackedWeigh,
    "stacked matrices, all run": StackedAllRun,
    "stacked matrices, sorted rows": StackedGrouped,
    "stacked matrices, a product": StackedDispatch,
}
