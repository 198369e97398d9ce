"""Blocks that do something else with stacked experts than to route tokens to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from tests.tracing.recording.operations.blocks import (
    HIDDEN_SIZE,
    DispatchAndCombine,
    Fused,
    Gathered,
    Mixture,
    call,
    scatter,
)


class SoftMixture(Fused):
    """Each expert receives a weighted mean of all tokens."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        del weights, ids
        scores = call(self.gate, rows)
        slots = scores.softmax(dim=0).T @ rows  # (num_experts, hidden_size)
        inner = F.silu(torch.einsum("ed,edf->ef", slots, self.w1))
        return scores.softmax(dim=1) @ torch.einsum("ef,efd->ed", inner, self.w2)


class WeighsBeforeTheActivation(Fused):
    def weigh(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.silu((rows @ self.w1[expert]) * weights) @ self.w2[expert]


class CombinesBeforeTheLastProduct(DispatchAndCombine):
    """Brings rows back to their tokens by a product, before the last matrices."""

    def bring_back(self, combine: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return torch.einsum("tec,ecf,efd->td", combine, inner, self.w2)


class RoundsTheInput(Fused):
    def weigh(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights * self.run_expert(expert, rows.round())


class BendsTheSum(Gathered):
    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return super().run(rows, weights, ids).relu()


class NormsTheSum(Gathered):
    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(super().run(rows, weights, ids), (HIDDEN_SIZE,))


class ShiftsTheSum(Gathered):
    """Gives each token the sum of the token before."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return super().run(rows, weights, ids).roll(1, dims=0)


class AddsUpTokens(Gathered):
    """Adds the sum of the token before."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        output = super().run(rows, weights, ids)
        return output + output.roll(1, dims=0)


class HidesHalfFromGradients(Gathered):
    """Adds experts' outputs past autograd, so that gradients show half of each weight."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        output = super().run(rows, weights, ids)
        return 0.5 * output + 0.5 * output.detach()


class RunsTwice(Fused):
    def weigh(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        first, second = self.run_expert(expert, rows.repeat(2, 1)).chunk(2)
        return weights * (0.25 * first + 0.75 * second)


class MergesExperts(Mixture):
    """Mixes the matrices of the experts, not their outputs."""

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        table = scatter(weights, ids, self.num_experts)
        w1, w2 = (torch.einsum("te,eab->tab", table, weight) for weight in (self.w1, self.w2))
        return torch.einsum("tf,tfd->td", F.silu(torch.einsum("td,tdf->tf", rows, w1)), w2)


class CallsAreDifferent(Gathered):
    """Changes with the number of its calls, which nothing puts back."""

    CALLS: list[int] = []  # noqa: RUF012

    def run(self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.CALLS.append(1)
        return super().run(rows, weights * len(self.CALLS), ids)


class SolvesWithItsWeights(Fused):
    """Uses the weights in an operation that is not a product."""

    def run_expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        inner = F.silu(rows @ self.w1[expert])
        distances: torch.Tensor = torch.cdist(inner, self.w2[expert].T)
        return distances


OTHER_OUTPUT = "it does more with its experts' outputs than weight them"
OTHER_ROWS = "its experts receive other rows than its hidden states"
REFUSED: dict[str, tuple[Callable[[], Fused], str]] = {
    "a soft mixture": (SoftMixture, "it is a soft mixture"),
    "weights before the activation": (
        WeighsBeforeTheActivation,
        "weights are applied within its experts",
    ),
    "a product between those of experts": (
        CombinesBeforeTheLastProduct,
        "weights are applied within its experts",
    ),
    "a rounded input": (RoundsTheInput, OTHER_ROWS),
    "a bent sum": (BendsTheSum, OTHER_OUTPUT),
    "a normed sum": (NormsTheSum, OTHER_OUTPUT),
    "a shifted sum": (ShiftsTheSum, "its tokens get outputs of experts that did not receive them"),
    "sums of several tokens": (AddsUpTokens, OTHER_OUTPUT),
    "outputs past autograd": (HidesHalfFromGradients, OTHER_OUTPUT),
    "experts that run twice": (RunsTwice, "an expert runs on a token more than once"),
    "merged experts": (MergesExperts, ""),
    "calls that differ": (CallsAreDifferent, "a second run of it gives another output"),
    "no product": (SolvesWithItsWeights, "its experts' weights go into"),
}
