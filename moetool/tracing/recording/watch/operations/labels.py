"""Labels of weights: the expert of each number, through operations that move numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from moetool.anatomy.routing.proposed.expert_groups import list_flat_stacks
from moetool.anatomy.routing.proposed.expert_updates import list_updates

# These keep the numbers of a tensor in their order.
_SAME_ORDER = frozenset(
    {"view", "_unsafe_view", "reshape", "clone", "contiguous", "detach", "alias", "_to_copy"}
    | {"lift_fresh", "unsqueeze", "squeeze", "_reshape_alias", "to", "flatten"}
)
# These move, repeat or leave out numbers, and compute none.
_MOVING = frozenset(
    {"permute", "transpose", "t", "select", "slice", "expand", "split", "split_with_sizes"}
    | {"unbind", "chunk", "index", "index_select", "gather", "cat", "stack", "repeat", "narrow"}
    | {"unfold", "movedim", "swapaxes", "mT", "numpy_T", "flip", "embedding", "constant_pad_nd"}
)


@dataclass(frozen=True)
class Label:
    """The experts that the numbers of a tensor belong to.

    Attributes:
        experts: Of the tensor's shape.
        roots: Running numbers of the parameters that they come from.
    """

    experts: torch.Tensor
    roots: frozenset[int]


def label_parameters(
    experts: nn.Module, *, num_experts: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the parameters of the experts in a module, and the experts that they belong to.

    Args:
        experts: A list of experts, a module with parameters that stack a matrix for each expert, or a
            block whose experts are updates.
        num_experts: Number of experts.
    """
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        for expert, module in enumerate(experts.children()):
            for parameter in module.parameters():
                number = torch.tensor(expert, device=parameter.device)
                yield parameter, number.expand(parameter.shape)
        return
    for expert, update in enumerate(list_updates(experts)):
        for parameter in update:
            yield parameter, torch.tensor(expert, device=parameter.device).expand(parameter.shape)
    stacked = [p for p in experts.parameters() if p.dim() >= 3]
    # Adapters may have put a value into the place of a parameter before the block runs.
    replaced = [getattr(experts, name) for name in getattr(experts, "parametrizations", ())]
    for parameter in (*stacked, *(value for value in replaced if value.dim() >= 3)):
        stack = parameter.shape[:-2]
        numbers = torch.arange(stack.numel(), device=parameter.device).view(*stack, 1, 1)
        yield parameter, numbers.expand(parameter.shape)
    for parameter in () if stacked else list_flat_stacks(experts, num_experts):
        numbers = torch.arange(num_experts, device=parameter.device)
        size = parameter.numel() // num_experts
        yield parameter, numbers.repeat_interleave(size).view(parameter.shape)


def name_of(operation: Any) -> str:
    """Return the name of an operation, in-place or not."""
    name: str = operation._schema.name.removeprefix("aten::")
    return name if name.startswith("_") else name.rstrip("_")


def keeps_order(operation: Any) -> bool:
    """Return whether an operation returns all numbers of a tensor in the same order."""
    return name_of(operation) in _SAME_ORDER


def is_move(operation: Any) -> bool:
    """Return whether an operation computes no numbers."""
    name = name_of(operation)
    return name in _SAME_ORDER or name in _MOVING


def move(operation: Any, args: Any, kwargs: Any, result: Any, moved: dict[int, Any]) -> Any:
    """Return what an operation makes of other tensors that stand for its arguments; None if unknown.

    Args:
        operation: One that `is_move`.
        args: Its arguments.
        kwargs: Its keyword arguments.
        result: What it returned for them.
        moved: The other tensors, by the identity of those that they stand for.
    """
    if name_of(operation) in _SAME_ORDER:
        first = moved.get(id(args[0]))
        return None if first is None else first.reshape(result.shape)

    def replace(value: Any) -> Any:
        return moved.get(id(value), value)

    if name_of(operation) in ("cat", "stack") and not all(id(v) in moved for v in args[0]):
        return None
    return operation(*tree_map(replace, args), **tree_map(replace, kwargs))


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """Return the tensors in nested arguments or results."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def all_equal(values: torch.Tensor, dim: int) -> bool:
    """Return whether a tensor has the same numbers all along a dimension."""
    if values.shape[dim] <= 1 or values.stride(dim) == 0:
        return True
    return bool((values == values.narrow(dim, 0, 1)).all())


def has_one_number(value: torch.Tensor, shape: torch.Size) -> bool:
    """Return whether a factor of rows has the same number all along each row.

    Args:
        value: The factor.
        shape: Of the rows. # (..., width)
    """
    if not value.dim() or shape[-1] == 1:
        return False
    return value.shape[-1] == 1 or (value.shape[-1] == shape[-1] and all_equal(value, -1))


def union(labels: Iterable[Label]) -> frozenset[int]:
    """Return the roots of several labels."""
    return frozenset().union(*(label.roots for label in labels))


def combine_experts(labels: Iterable[Label], shape: torch.Size) -> torch.Tensor | None:
    """Return the experts of a sum of weights; None if it mixes experts."""
    found: torch.Tensor | None = None
    for label in labels:
        experts = label.experts.expand(shape)
        if found is not None and not torch.equal(found, experts):
            return None
        found = experts
    return found


def storage_of(tensor: torch.Tensor) -> int:
    """Return a number that tensors share which share their memory, as long as one is kept."""
    key: int = tensor.untyped_storage()._cdata
    return key


def sides_of(result: torch.Tensor, side: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of a product, for its transpose if asked for."""
    height, width = result.shape[-2:]
    return (width, height) if side == 0 else (height, width)
