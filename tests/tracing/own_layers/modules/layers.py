"""Small routed layers as tutorials and repositories have them, each with a table of its weights.

`table` computes the weight of every expert for every token in a plain way, without the dispatch that
the layer's forward has: NaN where an expert does not run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, INNER, NUM_EXPERTS, TOP_K = 12, 20, 4, 2
Tensor = torch.Tensor


def feed_forward(width: int = WIDTH, out: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, INNER), nn.GELU(), nn.Linear(INNER, out))


def top_k_table(scores: Tensor, top_k: int = TOP_K) -> Tensor:
    """Return softmax weights of the largest scores, renormalized; NaN for the others."""
    kept = scores >= scores.sort(dim=-1, descending=True).values[:, top_k - 1 : top_k]
    weights = scores.exp() / (scores.exp() * kept).sum(dim=-1, keepdim=True)
    return weights.masked_fill(~kept, torch.nan)


class Layer(nn.Module):
    """Sends each token to the top-k of a linear router."""

    num_experts = NUM_EXPERTS

    def __init__(self) -> None:
        super().__init__()
        self.gate: Any = nn.Linear(WIDTH, self.num_experts, bias=False)
        self.add_experts()

    def add_experts(self) -> None:
        self.experts: Any = nn.ModuleList(feed_forward() for _ in range(self.num_experts))

    def score(self, rows: Tensor) -> Tensor:
        scores: Tensor = self.gate(rows)
        return scores

    def run(self, expert: int, rows: Tensor) -> Tensor:
        output: Tensor = self.experts[expert](rows)
        return output

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        weights = weights.softmax(dim=-1)
        output = torch.zeros_like(rows)
        for expert in range(self.num_experts):
            tokens, places = torch.where(ids == expert)
            if len(tokens):
                output[tokens] += weights[tokens, places, None] * self.run(expert, rows[tokens])
        return output

    def forward(self, x: Tensor) -> Any:
        rows = x.reshape(-1, WIDTH)
        return self.mix(rows, self.score(rows)).view_as(x)

    def table(self, rows: Tensor) -> Tensor:
        return top_k_table(self.score(rows))


class ListOfFfns(Layer):
    def add_experts(self) -> None:
        self.ffns = nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))

    def run(self, expert: int, rows: Tensor) -> Tensor:
        output: Tensor = self.ffns[expert](rows)
        return output


class ListOfMlps(Layer):
    """A soft mixture: every expert runs on every token."""

    def add_experts(self) -> None:
        self.mlps = nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(dim=-1)
        outputs = torch.stack([mlp(x) for mlp in self.mlps], dim=-1)
        return (outputs * weights.unsqueeze(-2)).sum(dim=-1)

    def table(self, rows: Tensor) -> Tensor:
        return self.score(rows).softmax(dim=-1)


class NumberedExperts(Layer):
    """Each expert is an attribute; all of them run, and the best is taken."""

    num_experts = 8

    def add_experts(self) -> None:
        for number in range(self.num_experts):
            self.add_module(f"expert_{number}", feed_forward())

    def forward(self, x: Tensor) -> Tensor:
        best = self.score(x).argmax(dim=-1, keepdim=True)
        every = torch.stack(
            [getattr(self, f"expert_{n}")(x) for n in range(self.num_experts)], dim=-2
        )
        return torch.take_along_dim(every, best.unsqueeze(-1), dim=-2).squeeze(-2)

    def table(self, rows: Tensor) -> Tensor:
        best = F.one_hot(self.score(rows).argmax(dim=-1), self.num_experts)
        return torch.where(best == 1, 1.0, torch.nan)


class LayersInLists(Layer):
    """The layers of experts lie in three lists, as in "LLMs from scratch"."""

    def add_experts(self) -> None:
        def layers(width: int, out: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(NUM_EXPERTS))

        self.fc1, self.fc2, self.fc3 = (
            layers(WIDTH, INNER),
            layers(WIDTH, INNER),
            layers(INNER, WIDTH),
        )

    def run(self, expert: int, rows: Tensor) -> Tensor:
        inner = F.silu(self.fc1[expert](rows)) * self.fc2[expert](rows)
        output: Tensor = self.fc3[expert](inner)
        return output


class Surrounded(Layer):
    """Norms and projects what goes in, projects and norms what comes out, and adds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.proj_in, self.proj_out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def enter(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj_in(self.norm_in(x)))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.enter(x).reshape(-1, WIDTH)
        total = self.proj_out(self.mix(rows, self.score(rows)))
        normed: Tensor = self.norm_out(total.view_as(x))
        return x + 0.5 * normed

    def table(self, rows: Tensor) -> Tensor:
        return top_k_table(self.score(self.enter(rows)))


class AddsInPlace(Layer):
    """Runs every expert on its own hidden states, which it then changes."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(x)
        weights, ids = scores.topk(TOP_K, dim=-1)
        dense = torch.zeros_like(scores).scatter(-1, ids, weights.softmax(dim=-1))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return x.add_((outputs * dense.unsqueeze(-2)).sum(dim=-1))


class RouterParameter(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(WIDTH, NUM_EXPERTS))

    def score(self, rows: Tensor) -> Tensor:
        scores: Tensor = rows @ self.gate
        return scores


class CosineRouter(RouterParameter):
    def score(self, rows: Tensor) -> Tensor:
        return 8 * F.normalize(rows, dim=-1) @ F.normalize(self.gate, dim=0)


class HashRouter(Layer):
    """A function of the place alone, which equal hidden states don't share."""

    def score(self, rows: Tensor) -> Tensor:
        place = torch.arange(len(rows) * NUM_EXPERTS).view(len(rows), -1)
        return (place * 7919 % 101) / 25


class DroppedPassThrough(Layer):
    """Top-1 with a capacity of two tokens; others pass as they are."""

    capacity = 2

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, best = scores.softmax(dim=-1).max(dim=-1)
        output = rows.clone()
        for expert in range(NUM_EXPERTS):
            tokens = torch.nonzero(best == expert).flatten()[: self.capacity]
            output[tokens] = weights[tokens, None] * self.run(expert, rows[tokens])
        return output

    def table(self, rows: Tensor) -> Tensor:
        weights, best = self.score(rows).softmax(dim=-1).max(dim=-1)
        table = torch.full((len(rows), NUM_EXPERTS), torch.nan)
        taken = [0] * NUM_EXPERTS
        for token, expert in enumerate(best.tolist()):
            if taken[expert] < self.capacity:
                table[token, expert] = weights[token]
                taken[expert] += 1
        return table


class UnequalExperts(Layer):
    """One expert is larger, one is linear, and one does nothing."""

    def add_experts(self) -> None:
        large = nn.Sequential(nn.Linear(WIDTH, 3 * INNER), nn.ReLU(), nn.Linear(3 * INNER, WIDTH))
        self.experts = nn.ModuleList(
            [feed_forward(), large, nn.Linear(WIDTH, WIDTH), nn.Identity()]
        )


class OtherWidth(Layer):
    """Experts return vectors of another width, for example of classes."""

    out = 5

    def add_experts(self) -> None:
        self.experts = nn.ModuleList(feed_forward(out=self.out) for _ in range(NUM_EXPERTS))

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        dense = torch.zeros_like(scores).scatter(1, ids, weights.softmax(dim=-1))
        outputs = torch.stack([expert(rows) for expert in self.experts], dim=1)
        return torch.einsum("te,teo->to", dense, outputs)

    def forward(self, x: Tensor) -> Any:
        rows = x.reshape(-1, WIDTH)
        return self.mix(rows, self.score(rows)).view(*x.shape[:-1], self.out)


class OneNumber(OtherWidth):
    out = 1


class SparseDispatcher(OtherWidth):
    """Shazeer's noisy top-k: parameters route, assignments are sorted by expert and stitched."""

    def __init__(self) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.randn(WIDTH, NUM_EXPERTS))
        self.w_noise = nn.Parameter(torch.randn(WIDTH, NUM_EXPERTS))
        del self.gate

    def score(self, rows: Tensor) -> Tensor:
        clean = rows @ self.w_gate
        if not self.training:
            return clean
        return clean + torch.randn_like(clean) * F.softplus(rows @ self.w_noise)

    def forward(self, x: Tensor) -> Any:
        rows = x.reshape(-1, WIDTH)
        scores = self.score(rows)
        top, ids = scores.topk(TOP_K, dim=1)
        gates = torch.zeros_like(scores).scatter(1, ids, top.softmax(dim=1))
        order = torch.nonzero(gates)[torch.nonzero(gates)[:, 1].argsort(stable=True)]
        parts = rows[order[:, 0]].split((gates > 0).sum(dim=0).tolist())
        outputs = torch.cat([e(part) for e, part in zip(self.experts, parts, strict=True)])
        outputs = outputs * gates[order[:, 0], order[:, 1], None]
        total = outputs.new_zeros(len(rows), self.out).index_add(0, order[:, 0], outputs)
        importance = gates.sum(dim=0)
        loss = importance.var() / importance.mean() ** 2
        return total.view(*x.shape[:-1], self.out), loss


class TwoLevels(Layer):
    """Each expert is a routed layer too, and is called even if no token reaches it."""

    def add_experts(self) -> None:
        self.experts = nn.ModuleList(Layer() for _ in range(NUM_EXPERTS))

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, ids = scores.topk(TOP_K, dim=-1)
        weights = weights.softmax(dim=-1)
        output = torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            tokens, places = torch.where(ids == expert)
            output[tokens] += weights[tokens, places, None] * self.run(expert, rows[tokens])
        return output


class Adapters(nn.Module):
    """Low-rank updates of a dense layer, mixed for each token (MixLoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.pick = nn.Linear(WIDTH, NUM_EXPERTS, bias=False)
        self.lora_A = nn.ModuleList(nn.Linear(WIDTH, 2, bias=False) for _ in range(NUM_EXPERTS))
        self.lora_B = nn.ModuleList(nn.Linear(2, WIDTH, bias=False) for _ in range(NUM_EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.pick(x).softmax(dim=-1)
        updates = [b(a(x)) for a, b in zip(self.lora_A, self.lora_B, strict=True)]
        mixed: Tensor = self.base(x) + (torch.stack(updates, -1) * weights[..., None, :]).sum(-1)
        return mixed

    def table(self, rows: Tensor) -> Tensor:
        weights: Tensor = self.pick(rows).softmax(dim=-1)
        return weights


LAYERS: dict[str, type[Layer] | type[Adapters]] = {
    "plain": Layer,
    "ffns": ListOfFfns,
    "mlps": ListOfMlps,
    "numbered": NumberedExperts,
    "layers in lists": LayersInLists,
    "surrounded": Surrounded,
    "in place": AddsInPlace,
    "router parameter": RouterParameter,
    "cosine router": CosineRouter,
    "hash router": HashRouter,
    "dropped pass through": DroppedPassThrough,
    "unequal experts": UnequalExperts,
    "other width": OtherWidth,
    "one number": OneNumber,
    "sparse dispatcher": SparseDispatcher,
    "two levels": TwoLevels,
    "adapters": Adapters,
}
