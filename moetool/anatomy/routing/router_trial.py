"""A trial of a router with random weights, which shows without a checkpoint what it does with scores.

The router is run on the CPU up to where the experts would start to compute.
"""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.anatomy.routing.before_experts import stopping_before
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.score_functions import Floats

_NUM_TOKENS = 64
# Large enough to distinguish softmax from sigmoid, small enough that neither saturates.
_SCORE_STD = 1.0
# Half a GiB, thirty times the largest published router. No larger one is given data.
_MOST_NUMBERS = 2**27

_ROUTER = re.compile(r"gate$|router$")


@dataclass(frozen=True)
class TrialDecision:
    """The scores that a router gave its experts, and the decisions that the experts received.

    Attributes:
        scores: (num_tokens, num_experts), or wider where there are classes beyond the experts.
        experts: Chosen ids, (num_tokens, top_k).
        weights: (num_tokens, top_k)
    """

    scores: Floats
    experts: NDArray[np.integer]
    weights: Floats


def run_router_trial(
    block: nn.Module, experts: nn.Module, layer: MoeLayer, *, hidden_size: int
) -> TrialDecision | None:
    """Run a copy of a router with random weights and return its decision, or None if it can't run.

    Args:
        block: The block of a layer of a skeleton. It is copied, and left as it was.
        experts: The experts in that block.
        layer: The layer, as the finder describes it.
        hidden_size: Width of the hidden states that the block takes.
    """
    received: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            _refuse_huge(_NUM_TOKENS * hidden_size)
            hidden_states = torch.randn(1, _NUM_TOKENS, hidden_size)
            children = dict(block.named_children())
            router = next(children[name] for name in children if _ROUTER.search(name))
            # A decoder layer that itself holds its router and experts takes more than hidden states.
            is_layer = any("attn" in name or "attention" in name for name in children)
            if layer.rule is RoutingRule.RECEIVED and not is_layer:
                experts_name = next(name for name in children if children[name] is experts)
                copied = _copy_router(block, experts_name=experts_name)
                for name, child in copied.named_children():
                    if name != experts_name and not isinstance(child, nn.Identity):
                        child.register_forward_hook(_keep(given))
                with stopping_before(copied.get_submodule(experts_name)) as received:
                    _call(copied, hidden_states)
            else:
                copied = _copy_router(router, experts_name=None)
                copied.register_forward_hook(_keep(given, received))
                _call(copied, hidden_states[0])
        except Exception:  # noqa: BLE001 - a block may need anything; then its style is unknown
            return None
    return _assemble(given, received, num_experts=layer.num_experts)


def _assemble(
    given: list[torch.Tensor], received: list[torch.Tensor], *, num_experts: int
) -> TrialDecision | None:
    """Return the decision, if both the router's scores and what its experts received are seen."""
    tables = [
        tensor.reshape(_NUM_TOKENS, -1)
        for tensor in given
        if tensor.numel() % _NUM_TOKENS == 0 and tensor.shape[-1] >= num_experts
    ]
    masks = [table for table in tables if not table.is_floating_point()]
    tables = [table for table in tables if table.is_floating_point()]
    if masks and bool((masks[0].sum(dim=1) <= 1).all()):
        return _assemble_masked(masks[0], given, tables)
    ids = next(
        (
            tensor
            for tensor in received
            if not tensor.is_floating_point() and tensor.dim() == 2 and len(tensor) == _NUM_TOKENS
        ),
        None,
    )
    weights = next(
        (t for t in received if ids is not None and t.is_floating_point() and t.shape == ids.shape),
        None,
    )
    sparse = [table for table in tables if (table == 0).any()]
    if ids is None and len(tables) == 2 and len(sparse) == 1:
        # Llama 4's router returns a number for every expert, zero for those not chosen.
        weights, ids = sparse[0].topk(int((sparse[0][0] != 0).sum()), dim=1)
        tables = [table for table in tables if table is not sparse[0]]
    if ids is None or weights is None or not tables or ids.shape[1] == 0:
        return None
    scores = min(tables, key=lambda table: table.shape[1])
    return TrialDecision(scores.double().numpy(), ids.numpy(), weights.double().numpy())


def _assemble_masked(
    mask: torch.Tensor, given: list[torch.Tensor], tables: list[torch.Tensor]
) -> TrialDecision | None:
    """Return the decision of a router that marks the one expert chosen and returns its probability.

    Tokens beyond an expert's capacity are not marked, and are left out.
    """
    weights = next((t for t in given if t.is_floating_point() and t.numel() == _NUM_TOKENS), None)
    if weights is None or not tables:
        return None
    kept = mask.sum(dim=1) == 1
    if not kept.any():
        return None
    return TrialDecision(
        scores=tables[0][kept].double().numpy(),
        experts=mask[kept].argmax(dim=1, keepdim=True).numpy(),
        weights=weights.reshape(-1, 1)[kept].double().numpy(),
    )


def _copy_router(module: nn.Module, *, experts_name: str | None) -> nn.Module:
    """Return a copy of a block or a router with random weights; its experts hold none."""
    copied = copy.deepcopy(module).eval()
    for name, _ in list(copied.named_children()):
        if "shared" in name:
            # They may run before the routed ones, and would only cost memory.
            setattr(copied, name, nn.Identity())
    holders = [
        holder
        for path, holder in copied.named_modules()
        if experts_name is None or path.split(".")[0] != experts_name
    ]
    states = [
        (holder, name, tensor)
        for holder in holders
        for name, tensor in (
            *holder.named_parameters(recurse=False),
            *holder.named_buffers(recurse=False),
        )
    ]
    _refuse_huge(sum(tensor.numel() for _, _, tensor in states))
    for holder, name, tensor in states:
        _set_state(holder, name, tensor)
    return copied


def _refuse_huge(num_elements: int) -> None:
    if num_elements > _MOST_NUMBERS:
        raise ValueError(f"{num_elements:,} random numbers are too many")


def _set_state(holder: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace a tensor without data by one with data."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    data = torch.zeros(tensor.shape, dtype=dtype)
    if dtype is torch.float32 and tensor.dim() >= 2:
        data.normal_(std=_SCORE_STD / tensor.shape[-1] ** 0.5)
    elif dtype is not torch.float32 and tensor.dim() == 2:
        # A table of experts by token id. Those of one token must differ.
        data += torch.arange(tensor.shape[1])
    elif name.endswith(("weight", "scale")):
        data.fill_(1)
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(holder, name, nn.Parameter(data, requires_grad=False) if is_parameter else data)


def _call(block: nn.Module, hidden_states: torch.Tensor) -> None:
    names = inspect.signature(block.forward).parameters
    with torch.inference_mode():
        if "input_ids" in names:
            block(hidden_states, input_ids=torch.zeros(1, _NUM_TOKENS, dtype=torch.long))
        else:
            block(hidden_states)


def _keep(*kinds: list[torch.Tensor]) -> Any:
    """Return a hook that appends the tensors which a module returns to each of some lists."""

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        values = output if isinstance(output, tuple) else (output,)
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        for kind in kinds:
            kind.extend(tensors)

    return hook
