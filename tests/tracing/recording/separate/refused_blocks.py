"""Blocks with separate experts that can't be read, or that do something else with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from tests.tracing.recording.separate.exact_blocks import (
    HIDDEN_SIZE,
    NUM_EXPERTS,
    Block,
    DenseLoop,
    call,
    feed_forward,
)


class RoutesPastItsRouter(Block):
    """Never calls its gate, so that a second run on other states makes another choice."""

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, cast(nn.Linear, self.gate).weight)


class RoutesADenseLoopPastItsRouter(RoutesPastItsRouter, DenseLoop):
    """Never calls its gate either, and its experts' rows show nothing."""


class NormsFirst(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN_SIZE)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, super().forward(call(self.norm, hidden_states)))


class AddsItsInput(Block):
    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return rows + output


class WeightsWithinExperts(Block):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(WeightedExpert() for _ in range(NUM_EXPERTS))

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts[expert], rows, weights)


class WeightedExpert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = feed_forward()

    def forward(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.layer, rows) * weights


class WeightsTheInput(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts[expert], rows * weights)


class RoundsTheInput(Block):
    """Has an effect that whole numbers, such as those of tokens, would not show."""

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, rows.round(), weights)


class GivesTheNegativePart(Block):
    """Makes zero of a token's number, like an empty slot."""

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, (-rows).relu(), weights)


class ProjectsTheSum(Block):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        del rows
        return call(self.projection, output)


class GatesTheSum(ProjectsTheSum):
    """Multiplies by a module that looks like a shared expert and would give 0.5 for zeros."""

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return call(self.projection, rows).sigmoid() * output


class ProjectsTheSumAndMore(Block):
    """Has a projection whose output is a hidden state, but whose input is not."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * HIDDEN_SIZE, HIDDEN_SIZE)

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return call(self.projection, torch.cat([rows, output], dim=-1))


class BendsTheSum(Block):
    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        del rows
        return output.relu()


class RunsExpertsTwice(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, rows.repeat(2, 1), weights.repeat(2, 1))[: len(rows)]


class LooksAtItsExperts(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.experts[expert], nn.Sequential), "no expert"
        return super().run_expert(expert, rows, weights)


OTHER_OUTPUT = "it does more with its experts' outputs than weight them"
OTHER_ROWS = "its experts receive other rows than its hidden states"
REFUSED: dict[str, tuple[Callable[[], Block], str]] = {
    "a router that is not called": (RoutesPastItsRouter, OTHER_OUTPUT),
    "a router that is not called, in a dense loop": (RoutesADenseLoopPastItsRouter, OTHER_OUTPUT),
    "a norm within the block": (NormsFirst, OTHER_ROWS),
    "a residual within the block": (AddsItsInput, OTHER_OUTPUT),
    "weights given to experts": (
        WeightsWithinExperts,
        "its experts take more than hidden states",
    ),
    "weights that scale the input": (WeightsTheInput, OTHER_ROWS),
    "a rounded input": (RoundsTheInput, "a second run sent tokens to other experts"),
    "the negative part of the input": (GivesTheNegativePart, OTHER_ROWS),
    "a projection of the sum": (ProjectsTheSum, "its projection changes what goes into or out of"),
    "a gate of the sum": (GatesTheSum, OTHER_OUTPUT),
    "a projection of the sum and of more": (
        ProjectsTheSumAndMore,
        "its projection changes what goes into or out of",
    ),
    "a bent sum": (BendsTheSum, OTHER_OUTPUT),
    "experts that run twice": (RunsExpertsTwice, "an expert runs on a token more than once"),
    "a look at the experts": (LooksAtItsExperts, "a second run of it ends in AssertionError"),
    "as many experts as hidden states are wide": (
        lambda: Block(HIDDEN_SIZE),
        "it has as many experts as its hidden states are wide",
    ),
    "as many experts, in a dense loop": (
        lambda: DenseLoop(HIDDEN_SIZE),
        "it has as many experts as its hidden states are wide",
    ),
}
