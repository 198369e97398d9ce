"""Experts that are low-rank updates of layers that all of them share, found by shapes (MixLoRA).

A block routes to them if the product of two matrices, of which it has one pair for each expert, has
the shape of one that it has only once. They may lie in lists of the block, or where torch does not
look for children: a package may replace the forward of a dense block and keep them with its owner.

Only the recorder uses them: which tokens meet which of them is observed while the block runs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator

from torch import nn

from moetool.anatomy.routing.routing_signs import STACK, iter_hidden_modules
from moetool.anatomy.routing.walk import is_called, join_path, walk_modules

_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])|(?<=[a-z_])\d+(?=\.)")
# The parts of a name before and after an expert's number.
_Place = tuple[str, str]


def find_expert_updates(model: nn.Module, *, closed: Collection[str]) -> Iterator[tuple[str, int]]:
    """Yield the paths of the blocks of a model that route to updates, and the number of experts.

    Args:
        model: Any model.
        closed: Module paths of the blocks whose routing is read already.
    """
    for path, module in walk_modules(model, closed=closed):
        if path not in closed and is_called(module):
            updates = list_updates(module)
            if updates:
                yield path, len(updates)


def list_updates(block: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each expert of a block that is an update; none if there are no such.

    Experts that are modules in one list are not among them if these may be all that an expert is.
    """
    owner = find_owner(block)
    for num_experts, places in _group_by_size(owner).items():
        matrices = [numbers for numbers in places.values() if numbers[0].dim() == 2]
        taken = {id(parameter) for numbers in places.values() for parameter in numbers}
        shapes = {
            tuple(parameter.shape)
            for parameter in block.parameters()
            if parameter.dim() == 2 and id(parameter) not in taken
        }
        are_updates = bool(matrices) and all(
            any(_is_update(one[0], other[0], shapes) for other in matrices) for one in matrices
        )
        widths = _find_widths(owner, num_experts, taken)
        # Modules in one list are whole experts if their outputs may be added up as they are.
        prefixes = {prefix.rstrip("._") for prefix, _ in places}
        is_list = len(prefixes) == 1 and prefixes <= owner._modules.keys()
        adds_up = any(_find_height(o[0], p[0]) in widths for o in matrices for p in matrices)
        if are_updates and widths and not (is_list and adds_up):
            return [
                [numbers[expert] for numbers in places.values()] for expert in range(num_experts)
            ]
    return []


def find_owner(block: nn.Module) -> nn.Module:
    """Return the module whose forward runs when a block is called: usually the block itself."""
    owner = getattr(vars(block).get("forward"), "__self__", block)
    return owner if isinstance(owner, nn.Module) else block


def _group_by_size(owner: nn.Module) -> dict[int, dict[_Place, list[nn.Parameter]]]:
    """Return parameters of the same shape whose names count experts, by the number of experts."""
    numbered: dict[_Place, dict[int, nn.Parameter]] = defaultdict(dict)
    for name, parameter in _iter_parameters(owner):
        for found in _NUMBER.finditer(name):
            place = (name[: found.start()], name[found.end() :])
            numbered[place][int(found[0])] = parameter
    groups: dict[int, dict[_Place, list[nn.Parameter]]] = defaultdict(dict)
    for place, by_number in numbered.items():
        parameters = [by_number[number] for number in sorted(by_number)]
        is_counted = sorted(by_number) == list(range(len(by_number))) != [0]
        # Layers that experts share would be the same parameter.
        are_apart = len(set(map(id, parameters))) == len(parameters)
        if is_counted and are_apart and len({p.shape for p in parameters}) == 1:
            groups[len(by_number)][place] = parameters
    return groups


def _iter_parameters(owner: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters in lists of a module, and of the modules that it hides."""
    for name, child in owner.named_children():
        if not is_called(child) and not STACK.search(name):
            for inner, parameter in child.named_parameters():
                yield f"{name}.{inner}", parameter
    for key, hidden in iter_hidden_modules(owner):
        for inner, parameter in hidden.named_parameters():
            yield join_path(key, inner), parameter


def _is_update(one: nn.Parameter, other: nn.Parameter, shapes: Collection[tuple[int, ...]]) -> bool:
    """Return whether the product of two matrices may be added to one of some shapes."""
    for rank, width in (one.shape, one.shape[::-1]):
        for height, inner in (other.shape, other.shape[::-1]):
            is_low = inner == rank < min(width, height)
            if is_low and ((height, width) in shapes or (width, height) in shapes):
                return True
    return False


def _find_height(first: nn.Parameter, last: nn.Parameter) -> int | None:
    """Return the width of what two linear layers return one after the other; None if they don't."""
    rank = first.shape[0]
    is_low = rank == last.shape[1] < min(first.shape[1], last.shape[0])
    return last.shape[0] if is_low else None


def _find_widths(owner: nn.Module, num_experts: int, taken: Collection[int]) -> set[int]:
    """Return the widths of what is routed by tensors that score experts, parameters or not."""
    return {
        width
        for tensor in (*owner.parameters(), *vars(owner).values())
        if getattr(tensor, "ndim", 0) == 2 and id(tensor) not in taken
        for size, width in (tensor.shape, tensor.shape[::-1])
        if size == num_experts
    }
