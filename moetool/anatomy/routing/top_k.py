"""The number of experts that a routed layer chooses for each token, found by running the layer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable, Iterable

import torch
from torch import nn

from moetool.anatomy.config_fields import read_count
from moetool.anatomy.routing.alike import describe_block
from moetool.anatomy.routing.before_experts import stopping_before
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.checkpoint.stated.top_k_fields import TOP_K_FIELDS

# Names under which blocks and routers keep the number. In a configuration, `top_k` would be the
# number of tokens to sample from.
_ATTRIBUTES = ("top_k", "topk", *TOP_K_FIELDS)

_NUM_TOKENS = 4


def find_each_top_k(
    model: nn.Module, layers: Iterable[MoeLayer], *, hidden_size: int
) -> dict[MoeLayer, int | None]:
    """Return how many experts each of several layers chooses for a token; None where that is unknown.

    Of blocks that are alike, one is run.

    Args:
        model: The skeleton that the layers were found in.
        layers: The layers, as the finder describes them.
        hidden_size: Width of the hidden states that their blocks take.
    """
    found: dict[Hashable, int | None] = {}
    top_k: dict[MoeLayer, int | None] = {}
    for layer in layers:
        if not _is_run(layer):
            top_k[layer] = find_top_k(model, layer, hidden_size=hidden_size)
            continue
        experts = layer.experts_path.removeprefix(layer.block_path)
        key = (experts, describe_block(model.get_submodule(layer.block_path)))
        if key not in found:
            found[key] = find_top_k(model, layer, hidden_size=hidden_size)
        top_k[layer] = found[key]
    return top_k


def find_top_k(model: nn.Module, layer: MoeLayer, *, hidden_size: int) -> int | None:
    """Return how many experts a layer chooses for a token; None if that is unknown.

    The block is run on the meta device up to where its experts receive their ids, because code need
    not do what its configuration says (PhiMoE always chooses two). Where the block can't be run, the
    number is the one that the router or the block keeps, or that its class is named after.

    Args:
        model: The skeleton that the layer was found in.
        layer: The layer, as the finder describes it.
        hidden_size: Width of the hidden states that the block takes.
    """
    block = model.get_submodule(layer.block_path)
    experts = model.get_submodule(layer.experts_path)
    if _is_run(layer):
        top_k = _watch_decision(block, experts, hidden_size=hidden_size)
        if top_k is not None:
            return top_k
    return read_top_k(model, layer)


def _is_run(layer: MoeLayer) -> bool:
    return layer.rule is RoutingRule.RECEIVED and layer.block_path != layer.experts_path


def read_top_k(model: nn.Module, layer: MoeLayer) -> int | None:
    """Return the number that a layer's router or block keeps, or that its class is named after.

    None if there is none. It need not be the number that they use.
    """
    block = model.get_submodule(layer.block_path)
    experts = model.get_submodule(layer.experts_path)
    # The router's number comes before the block's, because the router chooses by it.
    modules = [child for name, child in block.named_children() if child is not experts]
    for module in (*modules, block):
        number = read_count(module, *_ATTRIBUTES)
        if number is not None:
            return number
    for module in modules:
        named = re.search(r"Top(\d+)", type(module).__name__)
        if named:
            return int(named[1])
    return read_count(getattr(block, "config", None), *TOP_K_FIELDS)


def _watch_decision(block: nn.Module, experts: nn.Module, *, hidden_size: int) -> int | None:
    """Return the width of the ids that a block hands to its experts; None if it can't be run."""
    dtype = next((p.dtype for p in block.parameters() if p.is_floating_point()), torch.float32)
    hidden_states = torch.empty(1, _NUM_TOKENS, hidden_size, dtype=dtype, device="meta")
    required = [
        parameter
        for parameter in inspect.signature(block.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) != 1:
        return None
    try:
        with stopping_before(experts) as received, torch.inference_mode():
            block(hidden_states)
    except Exception:  # noqa: BLE001 - a block may need anything; then the next source is read
        return None
    ids = [tensor for tensor in received if not tensor.is_floating_point() and tensor.dim() == 2]
    is_decision = len(ids) == 1 and ids[0].shape[0] == _NUM_TOKENS
    return ids[0].shape[1] if is_decision else None
