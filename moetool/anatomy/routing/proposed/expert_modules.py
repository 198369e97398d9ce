"""Modules that may be the experts of a block, found by their arrangement, in code of any origin.

Only the recorder uses them, which proves in each call that they are routed to, or refuses.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from moetool.anatomy.routing.routing_signs import (
    EXPERT_WORD,
    MANY_MATRICES,
    STACK,
    are_alike,
    count_matrices,
    is_foreign,
    may_be_expert,
)
from moetool.anatomy.routing.walk import is_called, join_path

_NUMBERED = re.compile(r"^(.*?)_?(\d+)$")
# Run for every token, or not in the place of experts.
_OTHER = re.compile(r"shared|gate|router|norm", re.IGNORECASE)


@dataclass(frozen=True)
class ExpertModules:
    """The experts of a block.

    Attributes:
        experts_path: Module path of their list, of the first of their lists, or of the module whose
            children they are.
        block_path: Module path of the block.
        members: By expert, the paths within the block of the modules that it consists of.
    """

    experts_path: str
    block_path: str
    members: tuple[tuple[str, ...], ...]


def find_expert_modules(model: nn.Module, *, closed: Collection[str]) -> Iterator[ExpertModules]:
    """Yield the sets of modules in a model that may be experts.

    Args:
        model: Any model.
        closed: Module paths of the blocks whose routing is read already.
    """
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if any(f"{path}.".startswith(f"{known}.") for known in closed):
            continue
        block_path = path
        while block_path and not is_called(modules[block_path]):
            block_path = block_path.rpartition(".")[0]
        if block_path in closed or not is_foreign(modules[block_path]):
            continue
        for name, members in _find_sets(module, modules[block_path]):
            prefix = path.removeprefix(block_path).removeprefix(".")
            yield ExpertModules(
                experts_path=join_path(path, name) if name else path,
                block_path=block_path,
                members=tuple(
                    tuple(join_path(prefix, member) for member in expert) for expert in members
                ),
            )


def _find_sets(module: nn.Module, block: nn.Module) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield sets of a module's children, each with the name of its first list or an empty name."""
    lists = {
        name: list(child._modules)
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList | nn.ModuleDict)
        and not is_called(child)
        and not _OTHER.search(name)
    }
    single: dict[int, list[str]] = defaultdict(list)
    for name, keys in lists.items():
        paths = [f"{name}.{key}" for key in keys]
        if not _may_be_experts(module, block, name, paths):
            continue
        if EXPERT_WORD.search(name) or count_matrices(module.get_submodule(paths[0])) > 1:
            yield name, [[path] for path in paths]
        else:
            single[len(paths)].append(name)
    for names in single.values():
        # Experts whose layers lie in a list for each, as `fc1`, `fc2` and `fc3`.
        yield (
            names[0],
            [list(paths) for paths in zip(*(_paths(module, n) for n in names), strict=True)],
        )
    numbered: dict[str, list[str]] = defaultdict(list)
    for name, _ in module.named_children():
        found = _NUMBERED.match(name)
        if found and found[1] and not _OTHER.search(name):
            numbered[found[1]].append(name)
    for name, paths in numbered.items():
        is_mlp = count_matrices(module.get_submodule(paths[0])) > 1
        if not EXPERT_WORD.search(name) and not is_mlp and len(paths) < MANY_MATRICES:
            continue
        if _may_be_experts(module, block, name, paths):
            yield "", [[path] for path in paths]


def _paths(module: nn.Module, name: str) -> list[str]:
    return [f"{name}.{key}" for key in module.get_submodule(name)._modules]


def _may_be_experts(module: nn.Module, block: nn.Module, name: str, paths: list[str]) -> bool:
    """Return whether children may be experts: by their name, or because something may choose them."""
    members = [module.get_submodule(path) for path in paths]
    if len(members) < 2 or not any(map(may_be_expert, members)):
        return False
    if EXPERT_WORD.search(name):
        return True
    if STACK.search(name) or not are_alike(members):
        return False
    own = {id(parameter) for member in members for parameter in member.parameters()}
    return any(
        len(members) in parameter.shape
        for parameter in block.parameters()
        if id(parameter) not in own and parameter.dim() <= 2
    )
