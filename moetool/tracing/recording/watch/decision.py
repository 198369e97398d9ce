"""What a watched layer tells, and what every watch can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer


@dataclass(frozen=True)
class Decision:
    """What one call of a routed layer decided for its tokens, pads included.

    Attributes:
        experts: Ids, in the router's order where it has one; -1 where none ran.
            # (num_slots, top_k)
        weights: Routing weights. # (num_slots, top_k)
        scores: What the router gave every expert, if asked for. # (num_slots, num_scores)
    """

    experts: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None = None


Tell = Callable[[MoeLayer, Decision], None]


class Watch(Protocol):
    """Hooks on one routed layer, which tell its decision each time it runs."""

    @property
    def router_path(self) -> str | None:
        """Module path of the router, once it is known."""

    @property
    def output_factor(self) -> float | None:
        """By what the block multiplies the sum of its experts afterwards; None if unknown."""

    def install(self, model: nn.Module, tell: Tell) -> None:
        """Place the hooks."""

    def remove(self) -> None:
        """Remove every hook."""
