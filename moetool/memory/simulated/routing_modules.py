"""The modules that receive what routers chose, which a traced run copies."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.rules import RoutingRule


def find_routing_modules(skeleton: PreTrainedModel, *, notes: list[str]) -> tuple[nn.Module, ...]:
    """Return the modules that receive what routers chose, which a traced run copies.

    Args:
        skeleton: The model.
        notes: Receives a note if there are layers without such a module.
    """
    layers = find_experts(skeleton).layers
    received = [layer for layer in layers if layer.rule is RoutingRule.RECEIVED]
    if len(received) < len(layers):
        notes.append(
            "Memory for the recorded routing is left out where experts don't receive it as tensors."
        )
    return tuple(skeleton.get_submodule(layer.experts_path) for layer in received)
