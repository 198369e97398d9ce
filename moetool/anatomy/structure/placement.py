"""The component and layer of each parameter of any module, by its part in routing first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from moetool.anatomy.components import Component, Place
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.routing_signs import STACK
from moetool.anatomy.routing.walk import walk_modules, walk_parameters
from moetool.anatomy.skeleton.placement import Placement, find_known_model
from moetool.anatomy.structure.module_structure import ModuleStructure

_NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")
# Parts of a block whose names say what they are.
_NAMED = (Component.SHARED_EXPERTS, Component.NORM, Component.MIXER, Component.ROUTER)
_OF_LAYER = (Component.ROUTED_EXPERTS, Component.SHARED_EXPERTS, Component.ROUTER)


class StructurePlacement:
    """Finds the place of every parameter of a module.

    Names decide only what structure leaves open.
    """

    def __init__(self, structure: ModuleStructure) -> None:
        self._layers = structure.layers
        self._is_known = find_known_model(structure.module) is not None
        self._by_name = Placement(structure.module, structure.layers, structure.experts.unreadable)
        self._layer_of_expert: dict[int, MoeLayer] = {}
        for layer in structure.run_layers:
            for parameter in structure.parameters[layer].held.values():
                self._layer_of_expert.setdefault(id(parameter), layer)
        self._head = None if self._is_known else find_head(structure.module)
        self._layer_of_router = dict(self._find_routers(structure))

    def place(self, path: str, parameter: nn.Parameter) -> Place:
        """Return the place of a parameter, given its path."""
        place = self._by_name.place(path)
        component, layer = place.component, self._find_block(path)
        if id(parameter) in self._layer_of_expert:
            component, layer = Component.ROUTED_EXPERTS, self._layer_of_expert[id(parameter)]
        elif id(parameter) in self._layer_of_router and component not in _NAMED:
            component, layer = Component.ROUTER, self._layer_of_router[id(parameter)]
        elif path == self._head:
            component = Component.LM_HEAD
        if self._is_known:
            return Place(place.stack, place.layer, component)
        number = place.layer if self._is_in_stack(path) else None
        if layer is not None and component in _OF_LAYER:
            number = layer.layer
        return Place(place.stack, number, component)

    def _find_block(self, path: str) -> MoeLayer | None:
        """Return the innermost routed layer whose block contains a parameter."""
        around = [
            each
            for each in self._layers
            if not each.block_path or path.startswith(f"{each.block_path}.")
        ]
        return max(around, key=lambda each: len(each.block_path), default=None)

    def _is_in_stack(self, path: str) -> bool:
        """Return whether the first number in a path is that of a layer, and not of a part of one."""
        number = _NUMBER.search(path)
        if number is None:
            return False
        layer = path[: number.end()]
        is_routed = any(f"{each.block_path}.".startswith(f"{layer}.") for each in self._layers)
        return is_routed or STACK.search(path[: number.start()].rpartition(".")[2]) is not None

    def _find_routers(self, structure: ModuleStructure) -> Iterator[tuple[int, MoeLayer]]:
        """Yield what one part of a block holds with a number for each expert, if only one does."""
        for layer in structure.run_layers:
            block = structure.module.get_submodule(layer.block_path)
            owners: dict[str, list[nn.Parameter]] = {}
            for name, parameter in walk_parameters(block):
                is_score = layer.num_experts in parameter.shape and parameter.dim() <= 2
                if is_score and id(parameter) not in self._layer_of_expert:
                    owners.setdefault(name.rpartition(".")[0], []).append(parameter)
            if len(owners) == 1:
                for parameter in next(iter(owners.values())):
                    yield id(parameter), layer


def find_head(module: nn.Module) -> str | None:
    """Return the path of the matrix from hidden states to the vocabulary, known by its shape.

    None if there is none, if the matrix is the embedding, or if several have its shape.
    """
    paths = list(_list_of_embedding_shape(module))
    return f"{paths[0]}.weight" if len(paths) == 1 else None


def is_tied(module: nn.Module) -> bool | None:
    """Return whether an embedding is the head too; None if no head is known."""
    tables = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if any(id(each.weight) in tables for each in linear):
        return True
    return None if find_head(module) is None else False


def _list_of_embedding_shape(module: nn.Module) -> Iterator[str]:
    tables = [each.weight for each in module.modules() if isinstance(each, nn.Embedding)]
    shapes = {tuple(table.shape) for table in tables if table.shape[0] > table.shape[1]}
    for path, each in walk_modules(module):
        is_of_shape = isinstance(each, nn.Linear) and tuple(each.weight.shape) in shapes
        if is_of_shape and not any(each.weight is table for table in tables):
            yield path
