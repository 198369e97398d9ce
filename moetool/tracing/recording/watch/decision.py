"""The decision of a routed layer, and the contract of every watch that reports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import UntraceableError
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


def find_decision(values: Sequence[Any], *, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and weights among the arguments of an experts module.

    They are recognized by dtype and shape, never by name: gpt-oss calls them `router_indices` and
    `routing_weights`.

    Returns:
        Both # (num_slots, top_k)
    """
    ids: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for value in values[1:]:
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            (weights if value.is_floating_point() else ids).append(value)
    if len(ids) != 1 or len(weights) != 1 or ids[0].shape != weights[0].shape:
        seen = ", ".join(f"{value.dtype} {tuple(value.shape)}" for value in (*ids, *weights))
        raise UntraceableError(
            f"{path} was not called with one tensor of ids and one of weights.",
            hint="moetool records experts that are called as (hidden_states, ids, weights).",
            facts=[f"seen: {seen or 'nothing'}"],
        )
    return ids[0], weights[0]


def rank(weights: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and weights of chosen experts, the largest weight first.

    Args:
        weights: # (num_tokens, num_experts)
        chosen: # (num_tokens, num_experts)

    Returns:
        Both # (num_tokens, top_k), padded with -1 and 0.
    """
    width = max(int(chosen.sum(dim=1).max()), 1)
    ranked = weights.float().masked_fill(~chosen, -torch.inf)
    ids = ranked.argsort(dim=1, descending=True, stable=True)[:, :width]
    none = ~chosen.gather(1, ids)
    return ids.masked_fill(none, -1), weights.gather(1, ids).masked_fill(none, 0)
