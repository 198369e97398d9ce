"""Rules for reading the decisions of a routed layer, chosen by the structure of its modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Any

from torch import nn

from moetool.anatomy.routing.shards import find_own_forward
from moetool.anatomy.routing.walk import walk_parameters


class RoutingRule(StrEnum):
    """The way in which a layer's decisions are read.

    Attributes:
        RECEIVED: The experts module receives ids and weights, the contract of transformers 5.
        SPARSE_SCORES: The router returns a number for every expert, zero for those not chosen, and
            all experts run on inputs scaled by these numbers (Llama 4).
        SORTED_ROWS: The router returns the permutation that sorts rows by expert, and the experts
            are grouped linear layers (JetMoE).
        SEPARATE_EXPERTS: Each expert is a separate module, which the block calls on its tokens
            (Switch, the blocks of transformers 4, remote and hand-written code).
        OPERATIONS: Experts in any other arrangement, such as stacked parameters of the block itself.
            The block's operations show which tokens meet which of them (GShard's dispatch and
            combine tensors, rows sorted by expert, gathered weights).
        ROUTER_CHOICE: The router returns sparse weights, which the experts do not carry out
            (NLLB-MoE). Inexact.
        RETRIEVAL: Experts are rows of embeddings, looked up by product keys (Doge). Inexact.
    """

    RECEIVED = "received"
    SPARSE_SCORES = "sparse scores"
    SORTED_ROWS = "sorted rows"
    SEPARATE_EXPERTS = "separate experts"
    OPERATIONS = "operations"
    ROUTER_CHOICE = "router choice"
    RETRIEVAL = "retrieval"

    @property
    def inexact_because(self) -> str | None:
        """The reason why a layer read by this rule is not traced exactly; None if it is."""
        return _INEXACT.get(self)

    @property
    def runs_all_experts(self) -> bool:
        """Whether a layer read by this rule runs all its experts on every token."""
        return self is RoutingRule.SPARSE_SCORES


_INEXACT = {
    RoutingRule.ROUTER_CHOICE: (
        "transformers 5 runs experts 0 and 1 of NLLB-MoE on every token, whatever its router chose; "
        "what is recorded is the router's choice"
    ),
    RoutingRule.RETRIEVAL: (
        "the rule 'retrieval' reads experts that are rows of embeddings, which need not be those that "
        "a token's router chose: it may be scored with other tokens' router outputs; what is recorded "
        "is the experts that ran, with recomputed weights"
    ),
}

# Its forward applies one_hot to a mask of zeros and ones as if it held ids. This rule can go when a
# test says that NLLB-MoE runs the experts its router chose.
_MISROUTED_EXPERTS = "NllbMoeExperts"


def rule_of(module: nn.Module, *, name: str, parent: nn.Module | None) -> RoutingRule | None:
    """Return the rule that reads a module as the experts of a layer; None if it holds no experts.

    Args:
        module: Any module of a model.
        name: Its name within its parent.
        parent: The module that contains it; None for the model itself.
    """
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        if type(module).__name__ == _MISROUTED_EXPERTS:
            return RoutingRule.ROUTER_CHOICE
        is_routed = "expert" in name and parent is not None and _is_routed_set(module, parent)
        return RoutingRule.SEPARATE_EXPERTS if is_routed else None
    if _receives_decisions(module):
        return RoutingRule.RECEIVED
    if _has_own_experts(module) and len(stacked_parameters(module)) >= 2:
        # A block that stacks its experts itself has one input too, but no router next to it.
        is_scored = num_inputs(module) == 1 and _has_router_next_to_it(module, parent)
        return RoutingRule.SPARSE_SCORES if is_scored else None
    if _sorts_rows(module):
        return RoutingRule.SORTED_ROWS
    if _is_retrieval(module):
        return RoutingRule.RETRIEVAL
    return None


def stacked_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the module's own parameters that stack a matrix for each expert."""
    # Not by `parameters`, which takes ten times as long: this is asked of every module.
    return [p for p in module._parameters.values() if p is not None and p.dim() == 3]


def is_grouped_linear(module: nn.Module) -> bool:
    """Return whether a module holds a linear layer for each expert, run on rows sorted by expert."""
    return (
        len(stacked_parameters(module)) == 1
        and len(list(module.parameters())) == 1
        and num_inputs(module) == 2
    )


def num_inputs(module: nn.Module) -> int:
    """Return how many named parameters the module's forward takes."""
    forward = find_own_forward(module)
    function = getattr(forward, "__func__", None)
    # Methods are counted once: the modules of a model's layers share theirs.
    return _count_inputs(forward) if function is None else _count_inputs(function) - 1


@cache
def _count_inputs(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.kind not in kinds for parameter in parameters)


def _receives_decisions(module: nn.Module) -> bool:
    """Return whether a module is an experts module that takes hidden states, ids and weights.

    It must show two of three signs: quantized experts stack no parameters, LongCat-Flash states no
    number of experts, and embeddings of images may stack parameters and take three inputs too.
    """
    signs = (
        _has_own_experts(module),
        type(module).__name__.endswith("Experts"),
        len(stacked_parameters(module)) >= 2,
    )
    return sum(signs) >= 2 and num_inputs(module) == 3


def _has_own_experts(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_experts", None), int)


def _has_router_next_to_it(experts: nn.Module, parent: nn.Module | None) -> bool:
    """Return whether a sibling of an experts module states the same number of experts."""
    num_experts = getattr(experts, "num_experts", None)
    return parent is not None and any(
        child is not experts and getattr(child, "num_experts", None) == num_experts
        for child in parent.children()
    )


def _is_routed_set(container: nn.ModuleDict | nn.ModuleList, block: nn.Module) -> bool:
    """Return whether the modules in a container are alike and their block has a router for them."""
    experts = list(container.children())
    shapes = [[parameter.shape for _, parameter in walk_parameters(expert)] for expert in experts]
    are_alike = len(experts) > 1 and bool(shapes[0]) and all(shape == shapes[0] for shape in shapes)
    has_router = any(
        len(experts) in parameter.shape
        for child in block.children()
        if child is not container
        for parameter in child.parameters()
    )
    return are_alike and has_router


def _sorts_rows(module: nn.Module) -> bool:
    """Return whether a module holds grouped linear layers and a router."""
    children = list(module.children())
    num_grouped = sum(is_grouped_linear(child) for child in children)
    if num_grouped < 2:
        return False
    return num_grouped < sum(any(True for _ in child.parameters()) for child in children)


def _is_retrieval(module: nn.Module) -> bool:
    """Return whether a module looks up experts in the way that `RetrievalWatch` reads."""
    num_experts = getattr(module, "num_experts", None)
    children = dict(module.named_children())
    tables = [child for child in children.values() if isinstance(child, nn.Embedding)]
    are_read = {"router_gate", "down_embed"} <= children.keys() and all(
        isinstance(getattr(module, name, None), int) for name in ("num_keys", "top_k")
    )
    are_rows = len(tables) == 2 and all(table.num_embeddings == num_experts for table in tables)
    return are_read and are_rows
