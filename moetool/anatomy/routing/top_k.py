"""How many experts a routed layer runs for each token, asked of the layer itself."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn

from moetool.anatomy.config_fields import read_count
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.checkpoint.top_k_fields import TOP_K_FIELDS

# Names under which blocks and routers keep the number. In a configuration `top_k` alone would be the
# number of tokens to sample from.
_ATTRIBUTES = ("top_k", "topk", *TOP_K_FIELDS)

_NUM_TOKENS = 4


class _DecisionReached(Exception):  # noqa: N818 - it is no error
    """Ends a call of a block where its experts would start to compute."""

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k


def find_top_k(model: nn.Module, layer: MoeLayer, *, hidden_size: int) -> int | None:
    """Return how many experts a layer chooses for a token; None if nothing tells.

    The block is run on the meta device up to where its experts receive their ids, because what a
    configuration says need not be what the code does (PhiMoE always chooses two). Where that can't
    be done, the number is the one that the router or the block keeps, or its class is named after.

    Args:
        model: The skeleton that the layer was found in.
        layer: The layer.
        hidden_size: Width of the hidden states that the block takes.
    """
    block = model.get_submodule(layer.block_path)
    experts = model.get_submodule(layer.experts_path)
    if layer.rule is RoutingRule.RECEIVED and block is not experts:
        top_k = _watch_decision(block, experts, hidden_size=hidden_size)
        if top_k is not None:
            return top_k
    # The router's own number comes before the block's: it is what the router chooses by.
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

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = [
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, torch.Tensor)
            and not value.is_floating_point()
            and value.dim() == 2
        ]
        if len(ids) == 1 and ids[0].shape[0] == _NUM_TOKENS:
            raise _DecisionReached(ids[0].shape[1])

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
    handle = experts.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            block(hidden_states)
    except _DecisionReached as reached:
        return reached.top_k
    except Exception:  # noqa: BLE001 - a block may want anything; the next source is asked then
        return None
    finally:
        handle.remove()
    return None
