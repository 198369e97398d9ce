"""Blocks with separate experts that can't be read, or that do something else with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.tracing.recording.separate.exact_blocks import (
    NUM_EXPERTS,
    Block,
    call,
    feed_forward,
)


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


class RoundsTheInput(Block):
    """Has an effect that whole numbers, such as those of tokens, would not show."""

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, rows.round(), weights)


class GivesTheNegativePart(Block):
    """Makes zero of a token's number, like an empty slot."""

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, (-rows).relu(), weights)


class LooksAtItsExperts(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.experts[expert], nn.Sequential), "no expert"
        return super().run_expert(expert, rows, weights)


OTHER_ROWS = "its experts receive other rows than its hidden states"
REFUSED: dict[str, tuple[Callable[[], Block], str]] = {
    "weights given to experts": (
        WeightsWithinExperts,
        "its experts take more than hidden states",
    ),
    "a rounded input": (RoundsTheInput, OTHER_ROWS),
    "the negative part of the input": (GivesTheNegativePart, OTHER_ROWS),
    "a look at the experts": (LooksAtItsExperts, "a second run of it ends in AssertionError"),
}
# The rows that an expert receives of a single token are a tensor that the block computes for all tokens.
EXACT_FOR_ONE_TOKEN = {"a rounded input", "the negative part of the input"}
