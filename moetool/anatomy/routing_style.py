"""How a routed layer chooses its experts, seen by letting it choose.

The router is run on the CPU with random weights, up to where the experts would start to compute:
what it does with its scores is its code's affair, and configurations name it in many ways.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moetool.anatomy.moe_layers import MoeLayer
from moetool.anatomy.rules import RoutingRule
from moetool.anatomy.score_functions import (
    SCORE_FUNCTIONS,
    Floats,
    find_function,
    is_constant,
)

_NUM_TOKENS = 64
# Large enough that softmax and sigmoid can be told apart, small enough that neither saturates.
_SCORE_STD = 1.0
# Half a GiB: thirty times what the largest published router has. No larger one is given data.
_MOST_NUMBERS = 2**27

_GROUPS = ("num_group", "n_group", "num_expert_group")
_CHOSEN_GROUPS = ("topk_group",)
_SELECTION_BIAS = re.compile(r"correction_bias$|expert_bias$|balancing_biases$|router_bias$")
_HASH_TABLE = re.compile(r"tid2eid$")
_ROUTER = re.compile(r"gate$|router$")


@dataclass(frozen=True)
class RoutingStyle:
    """How a routed layer chooses.

    Attributes:
        scores: The function that turns what the router gives every expert into weights: `softmax`,
            `sigmoid` or `sqrt(softplus)`; None if it could not be told.
        is_normalized: Whether the weights of a token's experts add up to the same for all tokens;
            None if unknown.
        scale: What they add up to if they are normalised, else what they are multiplied by; None
            if unknown.
        has_selection_bias: A bias of each expert takes part in the choice, but not in the weights.
        num_groups: Groups of experts of which only some are chosen from; 1 if there are none.
        num_chosen_groups: How many are.
        is_hashed: The experts are looked up by the token's id.
        capacity: Tokens of a sequence that an expert takes at most; None if there is no limit.
    """

    scores: str | None
    is_normalized: bool | None
    scale: float | None
    has_selection_bias: bool
    num_groups: int
    num_chosen_groups: int
    is_hashed: bool
    capacity: int | None


@dataclass(frozen=True)
class _Decision:
    """What a router gave every expert, and what its experts received."""

    scores: Floats
    experts: Any
    weights: Floats


class _DecisionReached(Exception):  # noqa: N818 - it is no error
    """Ends a call of a block where its experts would start to compute."""


def describe_routing(model: nn.Module, layer: MoeLayer, *, hidden_size: int) -> RoutingStyle:
    """Return how a routed layer chooses.

    Args:
        model: The skeleton that the layer was found in.
        layer: The layer.
        hidden_size: Width of the hidden states that the block takes.
    """
    block = model.get_submodule(layer.block_path)
    experts = model.get_submodule(layer.experts_path)
    decision = _let_choose(block, experts, layer, hidden_size=hidden_size)
    name, is_normalized, scale = _explain(decision) if decision else (None, None, None)
    modules = [module for module in block.modules() if module not in set(experts.modules())]
    modules = [block, *modules] if block is experts else modules
    names = [name for name, _ in _list_state(block)]
    num_groups, num_chosen_groups = _read_groups(modules, decision, layer.num_experts)
    is_hashed = any(_HASH_TABLE.search(name) for name in names)
    return RoutingStyle(
        scores=name,
        is_normalized=is_normalized,
        scale=scale,
        has_selection_bias=not is_hashed and any(_SELECTION_BIAS.search(name) for name in names),
        num_groups=num_groups,
        num_chosen_groups=num_chosen_groups,
        is_hashed=is_hashed,
        capacity=_read(modules, ("expert_capacity",)),
    )


def _read_groups(
    modules: list[nn.Module], decision: _Decision | None, num_experts: int
) -> tuple[int, int]:
    """Return the groups that experts are chosen from, and how many of them for each token.

    Some routers keep both numbers without a use for them, so that the choice itself decides.
    """
    num_groups, chosen = _read(modules, _GROUPS) or 1, _read(modules, _CHOSEN_GROUPS) or 1
    if num_groups == 1 or chosen >= num_groups or decision is None or num_experts % num_groups:
        return 1, 1
    groups = decision.experts // (num_experts // num_groups)
    most = max(len(set(token)) for token in groups.tolist())
    return (num_groups, chosen) if most <= chosen else (1, 1)


def _explain(decision: _Decision) -> tuple[str | None, bool | None, float | None]:
    """Return the score function, whether the weights are normalised, and their scale."""
    name = find_function(
        SCORE_FUNCTIONS,
        scores=decision.scores,
        experts=decision.experts,
        weights=decision.weights,
    )
    if name is None:
        return None, None, None
    values = np.take_along_axis(SCORE_FUNCTIONS[name](decision.scores), decision.experts, axis=1)
    ratios = (decision.weights / values).mean(axis=1)
    sums = decision.weights.sum(axis=1)
    # What is given out as scores by some routers are probabilities already.
    is_softmax = name == "identity" and is_constant(decision.scores.sum(axis=1))
    name = "softmax" if is_softmax else name
    if is_constant(ratios) and not is_constant(sums):
        return name, False, round(float(np.median(ratios)), 4)
    if is_constant(sums):
        return name, True, round(float(np.median(sums)), 4)
    return name, None, None


def _let_choose(
    block: nn.Module, experts: nn.Module, layer: MoeLayer, *, hidden_size: int
) -> _Decision | None:
    """Return a decision of the layer's code with random weights; None if it can't be had."""
    received: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            _refuse_huge(_NUM_TOKENS * hidden_size)
            hidden_states = torch.randn(1, _NUM_TOKENS, hidden_size)
            name = next(name for name, child in block.named_children() if child is experts)
            router = next(child for child in block.named_children() if _ROUTER.search(child[0]))
            is_layer = any(
                "attn" in child or "attention" in child for child in dict(block.named_children())
            )
            if layer.rule is RoutingRule.RECEIVED and not is_layer:
                copied = _copy_router(block, experts_name=name)
                for child_name, child in copied.named_children():
                    if child_name != name and not isinstance(child, nn.Identity):
                        child.register_forward_hook(_keep(given))
                copied.get_submodule(name).register_forward_pre_hook(
                    _stop_with(received), with_kwargs=True
                )
            else:
                copied = _copy_router(router[1], experts_name=None)
                copied.register_forward_hook(_keep(given, received))
                hidden_states = hidden_states[0]
            with torch.inference_mode():
                _call(copied, hidden_states)
        except _DecisionReached:
            pass
        except Exception:  # noqa: BLE001 - a block may want anything; then its style is unknown
            return None
    return _assemble(given, received, num_experts=layer.num_experts)


def _assemble(
    given: list[torch.Tensor], received: list[torch.Tensor], *, num_experts: int
) -> _Decision | None:
    """Return the decision in what a router gave and what its experts received, if both are seen."""
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
        # Llama 4's router gives a number for every expert, zero for those not chosen.
        weights, ids = sparse[0].topk(int((sparse[0][0] != 0).sum()), dim=1)
        tables = [table for table in tables if table is not sparse[0]]
    if ids is None or weights is None or not tables or ids.shape[1] == 0:
        return None
    scores = min(tables, key=lambda table: table.shape[1])
    return _Decision(scores.double().numpy(), ids.numpy(), weights.double().numpy())


def _assemble_masked(
    mask: torch.Tensor, given: list[torch.Tensor], tables: list[torch.Tensor]
) -> _Decision | None:
    """Return the decision of a router that marks the one expert chosen and gives its probability.

    Tokens beyond an expert's capacity are marked nowhere, and left out.
    """
    weights = next((t for t in given if t.is_floating_point() and t.numel() == _NUM_TOKENS), None)
    if weights is None or not tables:
        return None
    kept = mask.sum(dim=1) == 1
    return _Decision(
        scores=tables[0][kept].double().numpy(),
        experts=mask[kept].argmax(dim=1, keepdim=True).numpy(),
        weights=weights.reshape(-1, 1)[kept].double().numpy(),
    )


def _copy_router(module: nn.Module, *, experts_name: str | None) -> nn.Module:
    """Return a copy of a block or a router with random weights; its experts hold none."""
    copied = copy.deepcopy(module).eval()
    for name, _ in list(copied.named_children()):
        if "shared" in name:
            # They may run before the routed ones, and would need weights for nothing.
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
        raise ValueError(f"{num_elements:,} numbers are too many to make up")


def _set_state(holder: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a module a tensor with data in the place of one without."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    data = torch.zeros(tensor.shape, dtype=dtype)
    if dtype is torch.float32 and tensor.dim() >= 2:
        data.normal_(std=_SCORE_STD / tensor.shape[-1] ** 0.5)
    elif dtype is not torch.float32 and tensor.dim() == 2:
        # A table of experts by token id: those of one token must differ.
        data += torch.arange(tensor.shape[1])
    elif name.endswith(("weight", "scale")):
        data.fill_(1)
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(holder, name, nn.Parameter(data, requires_grad=False) if is_parameter else data)


def _list_state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _call(block: nn.Module, hidden_states: torch.Tensor) -> None:
    names = inspect.signature(block.forward).parameters
    if "input_ids" in names:
        block(hidden_states, input_ids=torch.zeros(1, _NUM_TOKENS, dtype=torch.long))
    else:
        block(hidden_states)


def _stop_with(received: list[torch.Tensor]) -> Any:
    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.extend(v for v in (*args[1:], *kwargs.values()) if isinstance(v, torch.Tensor))
        raise _DecisionReached

    return stop


def _keep(*kinds: list[torch.Tensor]) -> Any:
    """Return a hook that keeps a module's outputs: numbers of experts, or also ids and weights."""

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        values = output if isinstance(output, tuple) else (output,)
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        for kind in kinds:
            kind.extend(tensors)

    return hook


def _read(modules: list[nn.Module], names: tuple[str, ...]) -> int | None:
    for module in modules:
        for name in names:
            number = getattr(module, name, None)
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                return number
    return None
