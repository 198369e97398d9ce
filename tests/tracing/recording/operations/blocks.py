"""Blocks in the structures that frameworks have, whose experts are not modules in a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

HIDDEN_SIZE, INNER_SIZE, NUM_EXPERTS, TOP_K, CAPACITY = 16, 24, 6, 2, 4


def call(module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, module(*args))


class Fused(nn.Module):
    """Loops over the matrices that it stacks itself; others vary a part."""

    def __init__(self, num_experts: int = NUM_EXPERTS) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate: Any = nn.Linear(HIDDEN_SIZE, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(num_experts, HIDDEN_SIZE, INNER_SIZE) / 4)
        self.w2 = nn.Parameter(torch.randn(num_experts, INNER_SIZE, HIDDEN_SIZE) / 4)

    def forward(self, hidden_states: torch.Tensor) -> Any:
        rows = hidden_states.reshape(-1, HIDDEN_SIZE)
        weights, ids = self.route(rows)
        return self.run(rows, weights, ids).view_as(hidden_states)

    def route(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = call(self.gate, rows).softmax(dim=-1).topk(TOP_K)
        return weights / weights.sum(dim=-1, keepdim=True), ids

    def run_expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        return F.silu(rows @ self.w1[expert]) @ self.w2[expert]

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(rows)
        for expert in range(self.num_experts):
            tokens, slots = torch.where(ids == expert)
            if len(tokens):
                output[tokens] += self.weigh(expert, rows[tokens], weights[tokens, slots, None])
        return output

    def weigh(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights * self.run_expert(expert, rows)

    def before(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the experts receive; the oracle runs all of them on it."""
        return hidden_states

    def rest(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what is added to the sum of the experts."""
        return torch.zeros_like(hidden_states)


class Gathered(Fused):
    """Gathers each token's matrices."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        inner = F.silu(torch.einsum("td,tkdf->tkf", rows, self.w1[ids]))
        return torch.einsum("tkf,tkfd,tk->td", inner, self.w2[ids], weights)


class WeighsInPlace(Gathered):
    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        inner = F.silu(torch.einsum("td,tkdf->tkf", rows, self.w1[ids]))
        outputs = torch.einsum("tkf,tkfd->tkd", inner, self.w2[ids])
        outputs *= weights[..., None]
        return outputs.sum(dim=1)


def scatter(weights: torch.Tensor, ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    return weights.new_zeros(len(ids), num_experts).scatter(1, ids, weights)


class AllOnAll(Fused):
    """Runs all experts on all tokens, with weights of zero."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        inner = F.silu(torch.einsum("td,edf->tef", rows, self.w1))
        outputs = torch.einsum("tef,efd->ted", inner, self.w2)
        return (scatter(weights, ids, self.num_experts)[..., None] * outputs).sum(dim=1)


class AllInOneSum(Fused):
    """Adds up all experts in the sum of the last product."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        table = scatter(weights, ids, self.num_experts)
        inner = F.silu(torch.einsum("td,edf->tef", rows, self.w1))
        return torch.einsum("te,tef,efd->td", table, inner, self.w2)


class Mixture(AllOnAll):
    """Mixes all experts for each token."""

    def route(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = call(self.gate, rows).softmax(dim=-1).topk(self.num_experts)
        return weights, ids


class DispatchAndCombine(Fused):
    """GShard: tokens go to slots by a mask, and come back by weights. Some are dropped."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        combine = self.combine(weights, ids).to(rows.dtype)
        dispatch = self.dispatch(combine)
        slots = torch.einsum("tec,td->ecd", dispatch, rows)
        inner = F.silu(torch.einsum("ecd,edf->ecf", slots, self.w1))
        return self.bring_back(combine, inner)

    def bring_back(self, combine: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return torch.einsum("tec,ecd->td", combine, torch.einsum("ecf,efd->ecd", inner, self.w2))

    def combine(self, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        chosen = F.one_hot(ids, self.num_experts)  # (num_tokens, top_k, num_experts)
        rank = (chosen.flatten(0, 1).cumsum(dim=0) - 1).view_as(chosen)
        kept = chosen * (rank < CAPACITY)
        slots = F.one_hot(rank.clamp(0, CAPACITY - 1), CAPACITY) * kept[..., None]
        return (slots * weights[..., None, None]).sum(dim=1)

    def dispatch(self, combine: torch.Tensor) -> torch.Tensor:
        return (combine > 0).to(combine)


class StraightThrough(DispatchAndCombine):
    """Its mask passes gradients to the router, and is 1 up to a rounding."""

    def dispatch(self, combine: torch.Tensor) -> torch.Tensor:
        return (combine > 0).to(combine) + combine - combine.detach()


class OwnCode(torch.autograd.Function):
    """Takes rows out of some places and puts them into others by code that torch does not see."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weights: torch.Tensor, places: torch.Tensor, size: int
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weights, places)
        output = torch.zeros(size, rows.shape[1], dtype=rows.dtype)
        numbers, taken = output.numpy(), rows.detach().numpy()
        for place, token, weight in zip(*places.tolist(), weights.tolist(), strict=True):
            numbers[place] += weight * taken[token]
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        rows, weights, (places, tokens) = ctx.saved_tensors
        of_weights = (gradient[places] * rows[tokens]).sum(dim=1)
        of_rows = torch.zeros_like(rows)
        return (
            of_rows.index_add(0, tokens, weights[:, None] * gradient[places]),
            of_weights,
            None,
            None,
        )


class DispatchesByOwnCode(DispatchAndCombine):
    """Tutel: its kernels bring rows to their slots and back."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        combine = self.combine(weights, ids).flatten(1).to(rows.dtype)
        tokens, slots = combine.nonzero().T
        ones = torch.ones(len(slots), dtype=rows.dtype)
        size = self.num_experts * CAPACITY
        given: Any = OwnCode.apply(rows, ones, torch.stack([slots, tokens]), size)
        inner = F.silu(torch.bmm(given.view(self.num_experts, CAPACITY, -1), self.w1))
        made = torch.bmm(inner, self.w2).flatten(0, 1)
        back = torch.stack([tokens, slots])
        output: Any = OwnCode.apply(made, combine[tokens, slots], back, len(rows))
        return cast(torch.Tensor, output)


class GateOfItsOwn(DispatchAndCombine):
    """Its gate is a parameter of the block."""

    def __init__(self) -> None:
        super().__init__()
        del self.gate
        self.router = nn.Parameter(torch.randn(HIDDEN_SIZE, NUM_EXPERTS))

    def route(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = (rows @ self.router).softmax(dim=-1).topk(TOP_K)
        return weights, ids


class Sorted(Fused):
    """Runs rows that are sorted by expert, in slices."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=self.num_experts)
        outputs = self.run_groups(rows[order // TOP_K], counts, weights.flatten()[order, None])
        return torch.zeros_like(rows).index_add(0, order // TOP_K, outputs)

    def run_groups(
        self, rows: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        slices = rows.split(counts.tolist())
        outputs = [self.run_expert(expert, part) for expert, part in enumerate(slices)]
        return torch.cat(outputs) * weights


class WeighsWithin(Sorted):
    """Megatron: the weights go into the activation, before the last product."""

    def run_groups(
        self, rows: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        parts = zip(rows.split(counts.tolist()), weights.split(counts.tolist()), strict=True)
        return torch.cat(
            [
                (F.silu(part @ self.w1[expert]) * scale) @ self.w2[expert]
                for expert, (part, scale) in enumerate(parts)
            ]
        )


class GroupedProducts(Sorted):
    """torchtitan: products of groups of rows, in bfloat16."""

    def run_groups(
        self, rows: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        ends = counts.cumsum(dim=0).int()
        w1, w2 = self.w1.bfloat16(), self.w2.bfloat16()
        inner = F.silu(torch._grouped_mm(rows.bfloat16(), w1, offs=ends))
        return torch._grouped_mm(inner, w2, offs=ends).to(rows.dtype) * weights


class UnderEachOther(Sorted):
    """MegaBlocks: matrices of all experts in one of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(self.w1.detach().mT.reshape(-1, HIDDEN_SIZE))
        self.w2 = nn.Parameter(self.w2.detach().reshape(-1, HIDDEN_SIZE))

    def run_expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        shape = (self.num_experts, INNER_SIZE, HIDDEN_SIZE)
        w1, w2 = (weight.view(shape)[expert] for weight in (self.w1, self.w2))
        return F.silu(rows @ w1.T) @ w2


class ExpertChoice(Fused):
    """Each expert chooses its tokens, of which some get none."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        del weights, ids
        scores = call(self.gate, rows).softmax(dim=-1)
        chosen, tokens = scores.T.topk(CAPACITY - 1, dim=-1)  # (num_experts, capacity)
        inner = F.silu(torch.einsum("ecd,edf->ecf", rows[tokens], self.w1))
        outputs = torch.einsum("ecf,efd->ecd", inner, self.w2) * chosen[..., None]
        return torch.zeros_like(rows).index_add(0, tokens.flatten(), outputs.flatten(0, 1))


class NormedWithResidual(Gathered):
    """Norms what its experts get, and adds its input and a shared expert."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN_SIZE)
        self.shared = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.rest(rows) + super().run(self.before(rows), weights, ids)

    def before(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return call(self.norm, hidden_states)

    def rest(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + call(self.shared, hidden_states)


class WithNoise(DispatchAndCombine):
    """Draws random numbers for its router, also in evaluation."""

    def route(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = call(self.gate, rows)
        weights, ids = (scores + torch.randn_like(scores)).softmax(dim=-1).topk(TOP_K)
        return weights, ids


class WithDropout(Gathered):
    """Has dropout on the scores of its router, and counts its tokens."""

    counts: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(NUM_EXPERTS, dtype=torch.long))

    def route(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = super().route(F.dropout(rows, 0.2, training=self.training))
        self.counts += torch.bincount(ids.flatten(), minlength=self.num_experts)
        return weights, ids


EXACT: dict[str, Callable[[], Fused]] = {
    "a loop over stacked matrices": Fused,
    "gathered matrices": Gathered,
    "weights in place": WeighsInPlace,
    "all experts on all tokens": AllOnAll,
    "all experts in one sum": AllInOneSum,
    "dispatch and combine": DispatchAndCombine,
    "a mask that passes gradients": StraightThrough,
    "code that torch does not see": DispatchesByOwnCode,
    "a gate of the block": GateOfItsOwn,
    "sorted rows": Sorted,
    "weights within experts": WeighsWithin,
    "grouped products": GroupedProducts,
    "matrices under each other": UnderEachOther,
    "expert choice": ExpertChoice,
    "a dense mixture": Mixture,
    "a norm and a residual": NormedWithResidual,
    "noise": WithNoise,
    "dropout before the router": WithDropout,
    "more experts than hidden states are wide": lambda: Gathered(HIDDEN_SIZE + 3),
}
