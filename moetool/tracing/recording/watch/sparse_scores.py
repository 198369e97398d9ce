"""Decisions read from a router's scores, which are zero for experts it did not choose."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import join_path
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report


class SparseScoresWatch:
    """Reads the non-zero entries of what the router returned.

    In Llama 4 all experts run on all tokens, with each token's hidden state multiplied by its score.
    An expert that was not chosen thus receives zeros, which is checked on what the experts receive.

    Attributes:
        weighs_input: Whether the weights multiply what experts receive.
    """

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        # NLLB-MoE's experts scale their own sum, so nothing is claimed about its factor.
        is_exact = layer.rule.inexact_because is None
        self.output_factor: float | None = 1.0 if is_exact else None
        self.router_path: str | None = None
        self._layer = layer
        self._keep_scores = keep_scores
        self.weighs_input = layer.rule is RoutingRule.SPARSE_SCORES
        self._output: tuple[torch.Tensor, ...] | None = None

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        layer = self._layer
        block = model.get_submodule(layer.block_path)
        name, router = _find_router(block, model.get_submodule(layer.experts_path))
        self.router_path = join_path(layer.block_path, name)
        hooks.after(router, self._keep_output)
        top_k = getattr(router, "top_k", None)

        def hook(_experts: nn.Module, args: tuple[Any, ...]) -> None:
            report(layer, self._read(args[0], top_k=top_k))

        experts = model.get_submodule(layer.experts_path)
        hooks.before(experts, hook)
        hooks.on_removal(self._forget)

    def _forget(self) -> None:
        self._output = None

    def _keep_output(self, _router: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, tuple):
            self._output = tuple(
                value for value in output if isinstance(value, torch.Tensor) and value.dim() == 2
            )

    def _read(self, received: torch.Tensor, *, top_k: int | None) -> Decision:
        layer = self._layer
        num_zeros = layer.num_experts - top_k if top_k else 1
        candidates = (
            value
            for value in self._output or ()
            if value.is_floating_point()
            and value.shape[1] == layer.num_experts
            and bool(((value == 0).sum(dim=1) >= num_zeros).all())
        )
        scores = next(candidates, None)  # (num_slots, num_experts)
        if scores is None:
            raise UntraceableError(
                f"The router of {layer.experts_path} returned no scores that are zero for the "
                "experts it did not choose.",
                hint="moetool can't record this kind of router.",
            )
        if layer.rule is RoutingRule.SPARSE_SCORES:
            self._check_received(received, scores)
        width = top_k or max(1, int((scores != 0).sum(dim=1).max()))
        weights, ids = scores.topk(width, dim=1)  # (num_slots, top_k)
        others = [value for value in self._output or () if value is not scores]
        self._output = None
        return Decision(
            ids.masked_fill(weights == 0, -1),
            weights,
            others[-1] if self._keep_scores and others else None,
        )

    def _check_received(self, received: torch.Tensor, scores: torch.Tensor) -> None:
        """Check that each expert received the tokens that chose it, and zeros for the others.

        Args:
            received: # (num_experts * num_slots, hidden_size)
            scores: # (num_slots, num_experts)
        """
        num_slots, num_experts = scores.shape
        reached = False
        if received.shape[0] == num_slots * num_experts:
            by_expert = received.view(num_experts, num_slots, -1)
            arrived = by_expert.ne(0).any(dim=2)  # (num_experts, num_slots)
            reached = bool(((scores != 0) == arrived.T).all())
        if not reached:
            raise UntraceableError(
                f"{self._layer.experts_path} did not receive the tokens that its router chose.",
                hint="moetool can't record this kind of experts.",
            )


def _find_router(block: nn.Module, experts: nn.Module) -> tuple[str, nn.Module]:
    """Return the child of a block that chooses: the one that knows the number of experts."""
    num_experts = getattr(experts, "num_experts", None)
    for name, child in block.named_children():
        if child is not experts and getattr(child, "num_experts", None) == num_experts:
            return name, child
    raise UntraceableError(
        f"{type(block).__name__} has no router next to its experts.",
        hint="moetool records blocks whose router is a separate module.",
    )
