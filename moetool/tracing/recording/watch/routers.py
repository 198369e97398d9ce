"""The router of a layer, found among the siblings of its experts, and its scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import join_path
from moetool.tracing.recording.hooks import Hooks


class RouterFinder:
    """Watches the siblings of an experts module for the one that returns its decisions.

    The router is the sibling whose output holds the very tensor of ids, or of weights, that the
    experts module then receives. Once it is known, only it is watched, and only if its scores are
    wanted.

    Attributes:
        router_path: Module path of the router, once it is known.
        num_classes: Number of classes it chooses from: its experts, identity experts, and in some
            families a separate class for tokens that skip the layer.
        scores: Its scores of every class in the last call, if asked for. # (num_slots, num_classes)

    Args:
        model: The recorded model.
        layer: The routed layer.
        keep_scores: Keep the router's scores.
    """

    def __init__(self, model: nn.Module, layer: MoeLayer, *, keep_scores: bool) -> None:
        self.router_path: str | None = None
        self.num_classes: int | None = None
        self.scores: torch.Tensor | None = None
        self._layer = layer
        self._keep_scores = keep_scores
        self._outputs: dict[str, tuple[Any, ...]] = {}
        self._hooks: dict[str, Hooks] = {}
        block = model.get_submodule(layer.block_path)
        for name, sibling in block.named_children():
            path = join_path(layer.block_path, name)
            if path != layer.experts_path:
                self._hooks[path] = Hooks()
                self._hooks[path].after(sibling, self._keep_output(path))

    def identify(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Find the router among the siblings that ran, given what the experts received."""
        for path, output in self._outputs.items():
            if any(value is ids or value is weights for value in output):
                scores = find_scores(output, ids.shape[0], num_experts=self._layer.num_experts)
                self.router_path = path
                self.num_classes = None if scores is None else scores.shape[1]
                self.scores = scores if self._keep_scores else None
                self._watch_only(path)
                break
        self._outputs.clear()

    def remove(self) -> None:
        """Remove every hook."""
        for hooks in self._hooks.values():
            hooks.remove()
        self._hooks.clear()
        self._outputs.clear()

    def _keep_output(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, tuple):
                self._outputs[path] = output

        return hook

    def _watch_only(self, router_path: str) -> None:
        for path in list(self._hooks):
            if path != router_path or not self._keep_scores:
                self._hooks.pop(path).remove()


def find_scores(output: object, num_slots: int, *, num_experts: int) -> torch.Tensor | None:
    """Return the first of a router's outputs that has a number for every expert, or None.

    Returns:
        # (num_slots, num_classes), with at least one class per expert
    """
    values = output if isinstance(output, tuple) else (output,)
    for value in values:
        if (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            # Some routers return an auxiliary loss, which has no dimensions.
            and value.dim()
            and value.shape[-1] >= num_experts
            and value.numel() == num_slots * value.shape[-1]
        ):
            return value.detach().reshape(num_slots, -1)
    return None
