"""Blocks whose experts run in compiled kernels, which are numpy here: torch sees none of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tests.tracing.recording.operations.blocks import (
    CAPACITY,
    HIDDEN_SIZE,
    INNER_SIZE,
    NUM_EXPERTS,
    TOP_K,
    call,
)

Array = NDArray[Any]


class HiddenKernels(nn.Module):
    """Receives hidden states, weights and ids; others vary a part."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(NUM_EXPERTS, HIDDEN_SIZE, INNER_SIZE) / 4)
        self.w2 = nn.Parameter(torch.randn(NUM_EXPERTS, INNER_SIZE, HIDDEN_SIZE) / 4)

    def forward(
        self, hidden_states: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        rows = hidden_states.detach().reshape(-1, HIDDEN_SIZE)
        numbers = (value.detach().reshape(len(rows), TOP_K).numpy() for value in (weights, ids))
        output = self.kernel(rows.numpy(), *numbers)
        return torch.from_numpy(output).to(rows).view_as(hidden_states)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.w1, self.w2

    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        output = np.zeros_like(rows)
        for token, choice in np.ndindex(*ids.shape):
            output[token] += weights[token, choice] * self.run(int(ids[token, choice]), rows[token])
        return output

    def run(self, expert: int, rows: Array) -> Array:
        first, second = (value.detach().numpy() for value in self.matrices())
        inner = rows @ first[expert]
        output: Array = (inner / (1 + np.exp(-inner))) @ second[expert]
        return output


class WithCapacity(HiddenKernels):
    """Drops the choices that come last."""

    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        places = (ids.reshape(-1, 1) == np.arange(NUM_EXPERTS)).cumsum(axis=0)
        place = np.take_along_axis(places, ids.reshape(-1, 1), axis=1).reshape(ids.shape)
        return super().kernel(rows, weights * (place <= CAPACITY), ids)


class WithBiases(HiddenKernels):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(NUM_EXPERTS, HIDDEN_SIZE))

    def run(self, expert: int, rows: Array) -> Array:
        output: Array = super().run(expert, rows) + self.bias.detach().numpy()[expert]
        return output


class WithSharedPart(HiddenKernels):
    """Adds to every token what no expert computed."""

    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        output: Array = super().kernel(rows, weights, ids) + rows
        return output


class Stack(nn.Module):
    """Holds a matrix for each expert."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) / 4)


class FlatStacks(nn.Module):
    """Holds matrices of all experts one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(NUM_EXPERTS * INNER_SIZE, HIDDEN_SIZE) / 4)
        self.w2 = nn.Parameter(torch.randn(NUM_EXPERTS * INNER_SIZE, HIDDEN_SIZE) / 4)


class FlatInChild(nn.Module):
    """Holds such matrices in a child, which does not know their number, and gets the scores too."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = NUM_EXPERTS
        self.mlp = FlatStacks()

    def forward(
        self,
        hidden_states: torch.Tensor,
        _scores: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        return HiddenKernels.forward(self, hidden_states, weights, ids)  # type: ignore[arg-type]

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        by_expert = (NUM_EXPERTS, INNER_SIZE, HIDDEN_SIZE)
        first, second = (parameter.view(by_expert) for parameter in self.mlp.parameters())
        return first.mT, second

    kernel, run = HiddenKernels.kernel, HiddenKernels.run


class InChildren(HiddenKernels):
    """Has a child for the first matrices, and one for the last."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_experts = NUM_EXPERTS
        self.first = Stack(NUM_EXPERTS, INNER_SIZE, HIDDEN_SIZE)
        self.second = Stack(NUM_EXPERTS, HIDDEN_SIZE, INNER_SIZE)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first.weight.mT, self.second.weight.mT


class SquaresWeights(HiddenKernels):
    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        return super().kernel(rows, weights**2, ids)


class IgnoresWeights(HiddenKernels):
    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        return super().kernel(rows, np.ones_like(weights), ids)


class AddsUnweighted(HiddenKernels):
    """Adds half of what the first choice returned, whatever its weight is."""

    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        return super().kernel(rows, weights + np.array([0.5, 0]), ids)


class RunsOthers(HiddenKernels):
    """Runs another expert on one token."""

    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        ids = ids.copy()
        ids[3, 1] = next(e for e in range(NUM_EXPERTS) if e not in ids[3])
        return super().kernel(rows, weights, ids)


class SwapsTokens(HiddenKernels):
    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        rows = rows.copy()
        rows[[4, 5]] = rows[[5, 4]]
        return super().kernel(rows, weights, ids)


class MixesTokens(HiddenKernels):
    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        return super().kernel(rows + rows.mean(axis=0) / 8, weights, ids)


class MultipliesOutputs(HiddenKernels):
    """No sum over experts: the first choice's output decides what becomes of the second's."""

    def kernel(self, rows: Array, weights: Array, ids: Array) -> Array:
        total = super().kernel(rows, weights, ids)
        output: Array = total * (1 + total)
        return output


class HiddenBlock(nn.Module):
    """A router next to such experts."""

    def __init__(self, make: Callable[[], nn.Module] = HiddenKernels) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN_SIZE, NUM_EXPERTS, bias=False)
        self.experts: Any = make()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return call(self.experts, hidden_states, *self.route(hidden_states))

    def route(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return call(self.gate, hidden_states).softmax(dim=-1).topk(TOP_K)

    def find_received(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the experts receive."""
        return hidden_states


class WithNorm(HiddenBlock):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN_SIZE)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = self.find_received(hidden_states)
        return hidden_states + call(self.experts, rows, *self.route(hidden_states))

    def find_received(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return call(self.norm, hidden_states)


class ByName(HiddenBlock):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weights, ids = self.route(hidden_states)
        output: torch.Tensor = self.experts(hidden_states, ids=ids, weights=weights)
        return output


class WithScores(HiddenBlock):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        scores = call(self.gate, hidden_states)
        return call(self.experts, hidden_states, scores, *self.route(hidden_states))


class Halved(HiddenBlock):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) / 2


class ReturnsToOthers(HiddenBlock):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states).roll(1, dims=1)


class SendsOthers(HiddenBlock):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.roll(1, dims=1)
        return call(self.experts, rows, *self.route(hidden_states)).roll(-1, dims=1)


def with_experts(experts: Callable[[], nn.Module]) -> Callable[[], HiddenBlock]:
    return lambda: HiddenBlock(experts)


EXACT: dict[str, Callable[[], HiddenBlock]] = {
    "ids and weights": HiddenBlock,
    "by name": ByName,
    "capacity": with_experts(WithCapacity),
    "biases": with_experts(WithBiases),
    "a shared part": with_experts(WithSharedPart),
    "a norm and a residual": WithNorm,
    "flat matrices in a child": lambda: WithScores(FlatInChild),
    "a child for each matrix": with_experts(InChildren),
    "half of the sum": Halved,
}
# By what they do: the block, and the reason why it is refused.
REFUSED: dict[str, tuple[Callable[[], HiddenBlock], str]] = {
    "other weights": (with_experts(SquaresWeights), "they apply other weights"),
    "no weights": (with_experts(IgnoresWeights), "don't depend on the weights"),
    "outputs without weights": (
        with_experts(AddsUnweighted),
        "scaling none of their matrices",
    ),
    "another expert": (with_experts(RunsOthers), "they run other experts"),
    "swapped tokens": (with_experts(SwapsTokens), "does not depend on that token alone"),
    "mixed tokens": (with_experts(MixesTokens), "does not depend on that token alone"),
    "a product": (with_experts(MultipliesOutputs), "they apply other weights"),
    "outputs of other tokens": (ReturnsToOthers, "gives a token what experts returned for others"),
    "rows of other tokens": (SendsOthers, "their rows are not made of one token each"),
}
