"""Signs of experts in the names and shapes of tensors, where no name shows them.

Names that no rule reads prove nothing, so such a checkpoint is not called dense.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from moetool.anatomy.components import Component
from moetool.anatomy.config_signs import find_config_signs
from moetool.anatomy.headers.placed_tensors import Layer, PlacedTensor, find_place
from moetool.anatomy.headers.stored_tensors import Role

_WORD = re.compile(r"expert|router|(^|[._])ffns([._]|$)", re.IGNORECASE)
_SHARED = re.compile(r"shared?_(expert|mlp)|altup")
_CONVOLUTION = re.compile(r"conv|patch|sampl|lru", re.IGNORECASE)
# Components that may be anything.
_DOUBTFUL = (Component.DENSE_MLP, Component.OTHER)
_BEHIND_LAYER = re.compile(r"(?:^|\.)\d+\.(.+)$")
_NUMBER = re.compile(r"(?<!\d)\d+(?=\.)")
# Modules that run one after the other.
_STACK = re.compile(r"^res|^conv|(layers?|blocks?|stages?|norms?)$", re.IGNORECASE)
# The fewest siblings that are a sign: modules named by a number alone, modules named by a word and a
# number (two MLPs around an attention are none), and single matrices (gate and up are none).
_FEWEST_MODULES, _FEWEST_NAMED, _FEWEST_MATRICES = 2, 3, 4


def find_header_signs(
    tensors: Sequence[PlacedTensor], *, routed: Collection[Layer], config: Mapping[str, object]
) -> str | None:
    """Return a sign of experts in layers whose names show none, as a reason; None without any.

    Args:
        tensors: The tensors with the model's parameters.
        routed: The layers whose names show experts.
        config: The config.json.
    """
    others = [
        tensor
        for tensor in tensors
        if tensor.layer not in routed
        and tensor.layer[1] is not None
        and not tensor.form.is_of_tower
        if tensor.stored.role is Role.PARAMETER
    ]
    named = next((t for t in others if _is_named(t.form.text)), None)
    if named is not None:
        return (
            f"{named.stored.header.name} may belong to experts, but how many there are is unknown"
        )
    stacked = next((tensor for tensor in others if _may_be_stack(tensor, routed)), None)
    if stacked is not None:
        header = stacked.stored.header
        shape = " x ".join(map(str, header.shape))
        return f"{header.name} ({shape}) may hold one matrix for each of several experts"
    siblings = _find_siblings(others, routed)
    if siblings is not None:
        return f"{siblings} has siblings of the same shape, which may be experts"
    stated = [] if routed else find_config_signs(config, only_undeclared=False)
    if stated:
        return f"config.json states experts ({stated[0]}), but no tensor's name shows any"
    return None


def _is_named(text: str) -> bool:
    behind = _BEHIND_LAYER.search(text)
    rest = behind[1] if behind else text
    return _WORD.search(rest) is not None and not _SHARED.search(rest)


def _may_be_stack(tensor: PlacedTensor, routed: Collection[Layer]) -> bool:
    shape = tensor.stored.header.shape
    if len(shape) < 3 or min(shape) < 2 or _CONVOLUTION.search(tensor.form.text):
        return False
    return find_place(tensor.form, tensor.layer, routed).component in _DOUBTFUL


def _find_siblings(tensors: Sequence[PlacedTensor], routed: Collection[Layer]) -> str | None:
    """Return the name of a matrix of which a layer has several that differ in a number."""
    seen: dict[tuple[Layer, str, tuple[int, ...], int], list[str]] = defaultdict(list)
    for tensor in tensors:
        header, layer = tensor.stored.header, tensor.layer
        behind = _BEHIND_LAYER.search(header.name)
        if behind is None or len(header.shape) < 2 or min(header.shape) < 2:
            continue
        if find_place(tensor.form, layer, routed).component not in _DOUBTFUL:
            continue
        for found in _NUMBER.finditer(behind[1]):
            before, after = behind[1][: found.start()], behind[1][found.end() + 1 :]
            if _STACK.search(before.rstrip("._").rpartition(".")[2]):
                continue
            fewest = _FEWEST_MATRICES
            if "." in after:
                fewest = _FEWEST_MODULES if before.endswith((".", "_")) else _FEWEST_NAMED
            seen[layer, f"{before}0.{after}", header.shape, fewest].append(header.name)
    return next((names[0] for (*_, fewest), names in seen.items() if len(names) >= fewest), None)
