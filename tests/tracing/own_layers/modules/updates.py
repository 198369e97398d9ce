"""Experts that are low-rank updates of layers which all of them share, as in MixLoRA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.tracing.own_layers.modules.layers import NUM_EXPERTS, TOP_K, WIDTH, Tensor, top_k_table

INNER, RANK, SCALE = 20, 2, 2.5
SHAPES = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}


class LowRank(nn.Module):
    """Returns an update of what a layer returns."""

    def __init__(self, height: int, width: int, dropout: float = 0) -> None:
        super().__init__()
        self.lora_A = nn.Linear(width, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, height, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        update: Tensor = self.lora_B(self.lora_A(self.dropout(rows)))
        return SCALE * update


class Mixture(nn.Module):
    """Updates in a list for each layer of a shared feed-forward; others vary a part."""

    updated: tuple[str, ...] = ("gate", "up", "down")

    def __init__(self) -> None:
        super().__init__()
        self.base: Any = nn.ModuleDict(
            {name: nn.Linear(width, height) for name, (height, width) in SHAPES.items()}
        )
        self.router = nn.Linear(WIDTH, NUM_EXPERTS, bias=False)
        self.add_updates()

    def add_updates(self) -> None:
        for name in self.updated:
            updates = nn.ModuleList(LowRank(*SHAPES[name]) for _ in range(NUM_EXPERTS))
            self.add_module(f"{name}_updates", updates)

    def update(self, name: str, expert: int, rows: Tensor) -> Tensor:
        updates: Any = getattr(self, f"{name}_updates")
        output: Tensor = updates[expert](rows)
        return output

    def run_layer(self, name: str, rows: Tensor) -> Tensor:
        output: Tensor = self.base[name](rows)
        return output

    def apply_layer(self, name: str, expert: int, rows: Tensor) -> Tensor:
        output = self.run_layer(name, rows)
        return output + self.update(name, expert, rows) if name in self.updated else output

    def run(self, expert: int, rows: Tensor) -> Tensor:
        inner = F.silu(self.apply_layer("gate", expert, rows))
        return self.apply_layer("down", expert, inner * self.apply_layer("up", expert, rows))

    def score(self, rows: Tensor) -> Tensor:
        scores: Tensor = self.router(rows)
        return scores

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.score(rows).topk(TOP_K, dim=-1)
        weights, output = weights.softmax(dim=-1), torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            tokens, places = torch.where(ids == expert)
            made = self.run(expert, rows[tokens]) * weights[tokens, places, None]
            output.index_add_(0, tokens, made)
        return output.view_as(x)

    def table(self, rows: Tensor) -> Tensor:
        return top_k_table(self.score(rows))


class OnlyGate(Mixture):
    updated = ("gate",)


class ListsOfMatrices(Mixture):
    """Two lists for each layer."""

    def add_updates(self) -> None:
        for name in self.updated:
            height, width = SHAPES[name]
            for side, shape in (("A", (width, RANK)), ("B", (RANK, height))):
                linears = nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(NUM_EXPERTS))
                self.add_module(f"{name}_{side}", linears)

    def update(self, name: str, expert: int, rows: Tensor) -> Tensor:
        first, last = (getattr(self, f"{name}_{side}")[expert] for side in "AB")
        output: Tensor = SCALE * last(first(rows))
        return output


class NotInTheModule(Mixture):
    """Its updates lie in a dictionary, where no `eval` reaches them, and its router is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        del self.router
        self.gate = torch.randn(NUM_EXPERTS, WIDTH)

    def add_updates(self) -> None:
        self.updates = {
            f"experts.{expert}.{name}": LowRank(*SHAPES[name], dropout=0.1)
            for name in self.updated
            for expert in range(NUM_EXPERTS)
        }

    def update(self, name: str, expert: int, rows: Tensor) -> Tensor:
        output: Tensor = self.updates[f"experts.{expert}.{name}"](rows)
        return output

    def score(self, rows: Tensor) -> Tensor:
        return rows @ self.gate.T


class Dense(nn.Module):
    """A feed-forward whose forward a mixture replaces."""

    def __init__(self) -> None:
        super().__init__()
        owner = NotInTheModule()
        self.base = owner.base
        # Not a child: modules in a dictionary are none.
        self.mixtures = {"first": owner}
        vars(self)["forward"] = owner.forward

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.base["gate"](x)) * self.base["up"](x)
        output: Tensor = self.base["down"](inner)
        return output

    def table(self, rows: Tensor) -> Tensor:
        return self.mixtures["first"].table(rows)


class HidesItsLastLayer(Mixture):
    """Runs the shared last layer by operations that are not products of matrices."""

    def run_layer(self, name: str, rows: Tensor) -> Tensor:
        if name != "down":
            return super().run_layer(name, rows)
        layer = self.base[name]
        total: Tensor = (rows[:, None] * layer.weight).sum(dim=-1) + layer.bias
        return total


class WeighsUpdatesAlone(Mixture):
    """Adds the shared last layer without the weights that its updates have."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.score(rows).topk(TOP_K, dim=-1)
        weights, output = weights.softmax(dim=-1), torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            tokens, places = torch.where(ids == expert)
            inner = F.silu(self.apply_layer("gate", expert, rows[tokens]))
            inner = inner * self.apply_layer("up", expert, rows[tokens])
            update = self.update("down", expert, inner) * weights[tokens, places, None]
            output.index_add_(0, tokens, self.run_layer("down", inner) + update)
        return output.view_as(x)


class StackedUpdates(Mixture):
    """Stacks its updates, and runs the shared last layer on the rows of all experts at once."""

    updated = ("down",)

    def add_updates(self) -> None:
        self.up_A = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, RANK))
        self.up_B = nn.Parameter(torch.randn(NUM_EXPERTS, RANK, INNER))
        self.down_A = nn.Parameter(torch.randn(NUM_EXPERTS, INNER, RANK))
        self.down_B = nn.Parameter(torch.randn(NUM_EXPERTS, RANK, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights = self.score(rows).softmax(dim=-1)
        inner = torch.einsum("td,edr,erh->teh", rows, self.up_A, self.up_B)
        inner = F.silu(inner + self.base["up"](rows)[:, None])
        update = torch.einsum("teh,ehr,erd->ted", inner, self.down_A, self.down_B)
        made = self.base["down"](inner) + SCALE * update
        return torch.einsum("te,ted->td", weights, made).view_as(x)


EXACT: dict[str, type[Any]] = {
    "lists of updates": Mixture,
    "updates of one layer": OnlyGate,
    "lists of matrices": ListsOfMatrices,
    "updates in a dictionary": NotInTheModule,
    "a forward that was replaced": Dense,
}
REFUSED: dict[str, tuple[type[Mixture], str]] = {
    "a last layer that is not seen": (
        HidesItsLastLayer,
        "it does more with its experts' outputs than weight them",
    ),
    "stacked updates": (
        StackedUpdates,
        "it does more with its experts' outputs than weight them",
    ),
    "weights for updates alone": (
        WeighsUpdatesAlone,
        "parts of an expert get different weights",
    ),
}
