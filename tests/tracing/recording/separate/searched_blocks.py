"""Blocks that do more than send hidden states to experts and add up what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from tests.tracing.recording.separate.exact_blocks import HIDDEN_SIZE, Block, DenseLoop, call


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


SEARCHED: dict[str, Callable[[], Block]] = {
    "a router that is not called": RoutesPastItsRouter,
    "a router that is not called, in a dense loop": RoutesADenseLoopPastItsRouter,
    "a norm within the block": NormsFirst,
    "a residual within the block": AddsItsInput,
    "a projection of the sum": ProjectsTheSum,
    "a gate of the sum": GatesTheSum,
    "a projection of the sum and of more": ProjectsTheSumAndMore,
    "a bent sum": BendsTheSum,
    "experts that run twice": RunsExpertsTwice,
    "as many experts as hidden states are wide": lambda: Block(HIDDEN_SIZE),
    "as many experts, in a dense loop": lambda: DenseLoop(HIDDEN_SIZE),
}
