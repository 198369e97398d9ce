"""Which module is a layer's router, and what it gave every expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.compiled import as_written


class RouterFinder:
    """Watches the siblings of an experts module for the one that returns its decisions.

    The router is the sibling whose output holds the very tensor of ids, or of weights, that the
    experts module then receives. Once it is known, only it is watched, and only if its scores are
    wanted.

    Attributes:
        router_path: Module path of the router, once it is known.
        num_classes: Among how many classes it chooses: its experts, identity experts, and in some
            families a class of its own for tokens that skip the layer.
        scores: What it gave every class in the last call, if asked for.

    Args:
        model: The recorded model.
        layer: The routed layer.
        keep_scores: Keep what the router gave every expert.
    """

    def __init__(self, model: nn.Module, layer: MoeLayer, *, keep_scores: bool) -> None:
        self.router_path: str | None = None
        self.num_classes: int | None = None
        self.scores: torch.Tensor | None = None
        self._layer = layer
        self._keep_scores = keep_scores
        self._outputs: dict[str, tuple[Any, ...]] = {}
        self._handles: dict[str, RemovableHandle] = {}
        block = model.get_submodule(layer.block_path)
        for name, sibling in block.named_children():
            path = f"{layer.block_path}.{name}" if layer.block_path else name
            if path != layer.experts_path:
                hook = as_written(self._keep_output(path))
                self._handles[path] = sibling.register_forward_hook(hook)

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
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def _keep_output(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, tuple):
                self._outputs[path] = output

        return hook

    def _watch_only(self, router_path: str) -> None:
        for path in list(self._handles):
            if path != router_path or not self._keep_scores:
                self._handles.pop(path).remove()


def find_scores(output: object, num_slots: int, *, num_experts: int) -> torch.Tensor | None:
    """Return the first of a router's outputs that has a number for every expert, or None."""
    values = output if isinstance(output, tuple) else (output,)
    for value in values:
        if (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.shape[-1] >= num_experts
            and value.numel() == num_slots * value.shape[-1]
        ):
            return value.detach().reshape(num_slots, -1)
    return None
