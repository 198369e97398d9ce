"""Experts in any arrangement, with the block that routes to them, found by shapes alone.

Only the recorder uses them: which tokens meet which of these weights is observed while the block
runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from moetool.anatomy.routing.proposed.expert_updates import find_expert_updates
from moetool.anatomy.routing.routing_signs import (
    EXPERT_WORD,
    STACK,
    are_alike,
    is_foreign,
    may_be_expert,
)
from moetool.anatomy.routing.walk import is_called, join_path, walk_modules

_FEWEST_STACKS = 2


@dataclass(frozen=True)
class ExpertGroup:
    """Experts and the block that routes to them.

    Attributes:
        experts_path: The list of the experts, or the module whose parameters stack them.
        block_path: The nearest module around them that has a router; may be the same.
        num_experts: Number of experts.
    """

    experts_path: str
    block_path: str
    num_experts: int


def find_expert_groups(model: nn.Module, *, closed: Collection[str]) -> Iterator[ExpertGroup]:
    """Yield the groups of experts in a model that have a router.

    Args:
        model: Any model.
        closed: Module paths of the blocks whose routing is read already.
    """
    inside: list[str] = []
    updates = dict(find_expert_updates(model, closed=closed))
    yield from (ExpertGroup(path, path, number) for path, number in updates.items())
    of_updates = tuple(join_path(path, "") for path in updates)
    for path, module in walk_modules(model, closed=closed):
        if path in closed or any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if f"{path}.".startswith(of_updates):
            continue
        levels = _find_levels(path, module, model.get_submodule(path.rpartition(".")[0]))
        block_path = _find_block(model, path, module, levels) if levels else None
        if block_path is not None and not _calls_itself(model, path, module, block_path):
            inside.append(path)
            yield ExpertGroup(path, block_path, math.prod(levels))


def _calls_itself(model: nn.Module, path: str, experts: nn.Module, block_path: str) -> bool:
    """Return whether a block calls the experts of a list, and no module between them does."""
    if not isinstance(experts, nn.ModuleList | nn.ModuleDict):
        return False
    caller = path
    while caller and not is_called(model.get_submodule(caller)):
        caller = caller.rpartition(".")[0]
    return caller == block_path


def _find_levels(path: str, module: nn.Module, parent: nn.Module) -> tuple[int, ...]:
    """Return the number of experts that a module holds itself; by level if they are in groups."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        name = path.rpartition(".")[2]
        return (len(module),) if _are_experts(name, list(module.children())) else ()
    if not is_foreign(module):
        return ()
    stacks = Counter(
        tuple(parameter.shape[:-2])
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() >= 3
        # One stack alone may be anything.
        for _ in range(_FEWEST_STACKS if "expert" in name else 1)
    )
    found = [levels for levels, count in stacks.items() if count >= _FEWEST_STACKS]
    if len(found) == 1 and math.prod(found[0]) > 1:
        return found[0]
    num_experts = _count_in_rows(module, parent) or _count_in_children(module)
    return (num_experts,) if num_experts else ()


def _are_experts(name: str, modules: list[nn.Module]) -> bool:
    """Return whether modules in a list of this name may be experts: several of the same shapes."""
    if len(modules) < 2 or not are_alike(modules) or not may_be_expert(modules[0]):
        return False
    return EXPERT_WORD.search(name) is not None or not STACK.search(name)


def _count_in_rows(module: nn.Module, parent: nn.Module) -> int:
    """Return how many experts share the rows of a module's matrices, by its own word, or 0.

    The module that holds it may speak for it.
    """
    for speaker in (module, parent):
        num_experts = getattr(speaker, "num_experts", None)
        if isinstance(num_experts, int) and num_experts > 1:
            stacks = list(list_flat_stacks(module, num_experts))
            return num_experts if len(stacks) >= _FEWEST_STACKS else 0
    return 0


def _count_in_children(module: nn.Module) -> int:
    """Return how many experts a module says that its children stack, a matrix of each in each, or 0."""
    num_experts = getattr(module, "num_experts", None)
    if not isinstance(num_experts, int) or num_experts < 2:
        return 0
    stacks = [
        child
        for child in module.children()
        if any(parameter.shape[:-2] == (num_experts,) for parameter in child.parameters(False))
    ]
    return num_experts if len(stacks) >= _FEWEST_STACKS else 0


def list_flat_stacks(module: nn.Module, num_experts: int) -> Iterator[nn.Parameter]:
    """Yield a module's own matrices that hold the matrices of all experts one after the other."""
    for parameter in module._parameters.values():
        if (
            parameter is not None
            and parameter.dim() == 2
            # A router has one number for each expert.
            and num_experts not in parameter.shape
            and any(size > num_experts and size % num_experts == 0 for size in parameter.shape)
        ):
            yield parameter


def _find_block(
    model: nn.Module, path: str, experts: nn.Module, levels: tuple[int, ...]
) -> str | None:
    """Return the path of the nearest module that holds the experts and a router."""
    own = {id(parameter) for parameter in experts.parameters()}
    is_list = isinstance(experts, nn.ModuleList | nn.ModuleDict)
    num_experts = math.prod(levels)
    if not is_list and _has_router_parameter(experts, num_experts):
        return path
    while path:
        path = path.rpartition(".")[0]
        holder = model.get_submodule(path)
        is_model = any(isinstance(module, nn.Embedding) for module in holder.modules())
        if is_model or isinstance(holder, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            return None
        others = (p for p in holder.parameters() if id(p) not in own)
        routers = (
            child
            for name, child in holder.named_children()
            if name and not any(id(p) in own for p in child.parameters())
        )
        if any(
            num_experts in parameter.shape or (len(levels) > 1 and {*levels} <= {*parameter.shape})
            for parameter in others
        ) or any(getattr(child, "num_experts", None) == num_experts for child in routers):
            return path
    return None


def _has_router_parameter(module: nn.Module, num_experts: int) -> bool:
    """Return whether one of the module's own matrices, or of its children's, scores experts."""
    return any(
        is_router_matrix(name, parameter, num_experts)
        for name, parameter in module.named_parameters()
    )


def is_router_matrix(name: str, parameter: nn.Parameter, num_experts: int) -> bool:
    """Return whether a parameter may be a matrix that scores experts.

    One with a row for each expert may also hold their biases, which have names of biases.
    """
    if parameter.dim() != 2 or num_experts not in parameter.shape:
        return False
    word = name.rpartition(".")[2]
    return parameter.shape[1] == num_experts or not (word.startswith("b") or "bias" in word)
