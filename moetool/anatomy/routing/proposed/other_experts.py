"""Modules that hold experts and belong to no routed layer whose decisions a rule reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from moetool.anatomy.routing.walk import walk_modules


def find_other_experts(
    model: nn.Module, *, blocks: Collection[str], experts: Collection[str]
) -> Iterator[str]:
    """Yield the paths of modules that hold experts and belong to none of the known routed layers.

    A module belongs to a layer if it contains its experts or is a part of its block: routers and
    blocks have a `num_experts` too, and wrappers may hold a router under a second path.

    Args:
        model: Any model.
        blocks: Paths of the known layers' blocks.
        experts: Paths of their experts.
    """
    closed = set(blocks) - {""}
    parts = {id(part) for path in closed for _, part in walk_modules(model.get_submodule(path))}
    for path, module in walk_modules(model, closed=closed):
        if not path or id(module) in parts or not _holds_experts(path, module):
            continue
        # If the model itself is a block, its children may be routers.
        if "" in blocks and "." not in path and not _has_many_matrices(module):
            continue
        if not any(_are_nested(path, known) for known in experts):
            yield path


def _are_nested(path: str, other: str) -> bool:
    """Return whether one of two modules is a part of the other."""
    return f"{other}.".startswith(f"{path}.") or bool(other and path.startswith(f"{other}."))


def _holds_experts(path: str, module: nn.Module) -> bool:
    num_experts = getattr(module, "num_experts", None)
    if isinstance(num_experts, int) and num_experts > 1:
        return True
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        return path.rpartition(".")[2] == "experts" and len(module) > 1
    return type(module).__name__.endswith("Experts") and any(True for _ in module.parameters())


def _has_many_matrices(module: nn.Module) -> bool:
    """Return whether a module could hold experts: it stacks matrices, or lists modules."""
    if any(isinstance(inner, nn.ModuleDict | nn.ModuleList) for inner in module.modules()):
        return True
    return any(parameter.dim() > 2 for parameter in module.parameters())
