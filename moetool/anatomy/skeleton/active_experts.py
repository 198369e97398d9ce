"""The parameters of a routed layer that one text token runs."""

from __future__ import annotations

from torch import nn

from moetool.anatomy.parameters import ActiveRange
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule

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
        f"{layer.experts_path}.{name}": parameter
        for name, parameter in experts.named_parameters(remove_duplicate=False)
        if not holds_others
        or parameter.dim() == 3
        or isinstance(experts.get_submodule(name.rpartition(".")[0]), nn.Embedding)
    }


def count_one_expert(model: nn.Module, layer: MoeLayer) -> int:
    """Return the parameters of one of a layer's experts, without those that all of them share."""
    parameters = list_expert_parameters(model, layer).values()
    if layer.rule in _SEPARATE:
        return sum(parameter.numel() for parameter in parameters) // layer.num_experts
    return sum(count_own(parameter, layer) for parameter in parameters)


def count_active_experts(model: nn.Module, layer: MoeLayer, *, top_k: int) -> ActiveRange:
    """Return how many of the parameters of a layer's experts one text token runs.

    A token runs `top_k` experts, or fewer if it can choose identity experts, which have no
    parameters. It runs all that the experts share, such as a norm of their outputs, and nothing of
    the unused parameters that are allocated for identity experts (LongCat-Flash).

    Args:
        model: The model that the layer was found in.
        layer: A routed layer.
        top_k: Experts that it chooses for a token.
    """
    if not is_run_by_text(layer):
        return ActiveRange(0, 0)
    per_expert = count_one_expert(model, layer)
    if layer.rule in _SEPARATE:
        return ActiveRange(top_k * per_expert, top_k * per_expert)
    parameters = list_expert_parameters(model, layer).values()
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
