"""The parameters of a routed layer that one text token runs."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from moetool.anatomy.parameters import ActiveRange
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import walk_parameters

# Such layers route the tokens of images and sounds only, also within a text model (ERNIE-VL).
_UNREAD_BY_TEXT = ("vision", "audio", "talker")

_SEPARATE = (RoutingRule.SEPARATE_EXPERTS, RoutingRule.ROUTER_CHOICE)


def is_run_by_text(layer: MoeLayer) -> bool:
    """Return whether a routed layer is run by text tokens."""
    return not any(word in layer.stack for word in _UNREAD_BY_TEXT)


def list_expert_parameters(model: nn.Module, layer: MoeLayer) -> dict[str, nn.Parameter]:
    """Return the parameters of a layer's experts by path, also those that layers share.

    If the block itself holds the experts, its other parameters are left out.
    """
    experts = model.get_submodule(layer.experts_path)
    holds_others = layer.rule in (RoutingRule.SORTED_ROWS, RoutingRule.RETRIEVAL)
    return {
        path: parameter
        for path, parameter in walk_parameters(experts, path=layer.experts_path, is_each_once=False)
        if not holds_others
        or parameter.dim() == 3
        or isinstance(model.get_submodule(path.rpartition(".")[0]), nn.Embedding)
    }


def count_one_expert(parameters: Collection[nn.Parameter], layer: MoeLayer) -> int:
    """Return the parameters of one of a layer's experts, without those that all of them share.

    Args:
        parameters: Those of all its experts.
        layer: A routed layer.
    """
    if layer.rule in _SEPARATE:
        return sum(parameter.numel() for parameter in parameters) // layer.num_experts
    return sum(count_own(parameter, layer) for parameter in parameters)


def count_active_experts(
    parameters: Collection[nn.Parameter], layer: MoeLayer, *, top_k: int
) -> ActiveRange:
    """Return how many of the parameters of a layer's experts one text token runs.

    A token runs `top_k` experts, or fewer if it can choose identity experts, which have no
    parameters. It runs all that the experts share, such as a norm of their outputs, and nothing of
    the unused parameters that are allocated for identity experts (LongCat-Flash).

    Args:
        parameters: Those of all the layer's experts.
        layer: A routed layer.
        top_k: Experts that it chooses for a token.
    """
    if not is_run_by_text(layer):
        return ActiveRange(0, 0)
    per_expert = count_one_expert(parameters, layer)
    if layer.rule in _SEPARATE:
        return ActiveRange(top_k * per_expert, top_k * per_expert)
    shared = sum(p.numel() for p in parameters if count_own(p, layer) == 0)
    fewest = max(top_k - layer.num_identity_experts, 0)
    return ActiveRange(fewest * per_expert + shared, top_k * per_expert + shared)


def count_own(parameter: nn.Parameter, layer: MoeLayer) -> int:
    """Return how many elements of a parameter belong to each expert; 0 if all experts share it."""
    if parameter.dim() < 2:
        return 0
    if parameter.shape[0] == layer.num_experts + layer.num_identity_experts:
        return parameter.numel() // parameter.shape[0]
    # DBRX stacks the matrices of its experts along the rows.
    return parameter.numel() // layer.num_experts
