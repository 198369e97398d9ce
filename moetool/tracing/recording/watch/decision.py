"""The decision of a routed layer, and the contract of every watch that reports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.hooks import Hooks


class Decision(NamedTuple):
    """The decision of one call of a routed layer for all its tokens, pads included.

    Attributes:
        experts: Ids, in the router's order if it has one; -1 where none ran.
            # (num_slots, top_k)
        weights: Routing weights. # (num_slots, top_k)
        scores: The router's number for every expert, if asked for. # (num_slots, num_scores)
    """

    experts: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None = None


Report = Callable[[MoeLayer, Decision], None]


class Watch(Protocol):
    """Reports a routed layer's decision each time the layer runs."""

    @property
    def router_path(self) -> str | None:
        """Module path of the router, once it is known."""

    @property
    def output_factor(self) -> float | None:
        """Factor by which the block multiplies the sum of its experts; None if unknown."""

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place hooks on the layer; whoever holds them removes them."""
