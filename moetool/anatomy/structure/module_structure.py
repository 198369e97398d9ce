"""A module with all that its structure shows of routing: found once, and handed on as one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from moetool.anatomy.routing.moe_layers import FoundExperts, MoeLayer, find_proposed_experts
from moetool.anatomy.routing.routing_signs import iter_hidden_modules
from moetool.anatomy.skeleton.active_experts import is_run_by_text
from moetool.anatomy.skeleton.placement import find_known_model
from moetool.anatomy.structure.expert_parameters import ExpertParameters, find_expert_parameters


@dataclass(frozen=True)
class ExpertSet:
    """Experts, and the layers that choose among them: usually one.

    Attributes:
        layers: Layers that hold the same parameters.
        parameters: These parameters.
        num_places: How many places in the module hold one of the layers.
        inner: By expert, the sets of experts within it. Empty except in two-level mixtures.
    """

    layers: tuple[MoeLayer, ...]
    parameters: ExpertParameters
    num_places: int
    inner: Mapping[int, tuple[ExpertSet, ...]]


@dataclass(frozen=True, eq=False)
class ModuleStructure:
    """A module and its routed experts, in any code. What follows is worked out when asked for.

    Attributes:
        module: It may be on the meta device.
        experts: Its routed experts, also those that only the recorder could prove to be routed to.
    """

    module: nn.Module
    experts: FoundExperts

    @classmethod
    def of(cls, module: nn.Module) -> ModuleStructure:
        """Return a module with the routed experts that are found in it."""
        return cls(module, find_proposed_experts(module))

    @property
    def layers(self) -> tuple[MoeLayer, ...]:
        """All routed layers, in the module's own order."""
        return self.experts.layers

    @cached_property
    def run_layers(self) -> tuple[MoeLayer, ...]:
        """Those of them that tokens run: in a model of transformers, tokens of text."""
        is_known = find_known_model(self.module) is not None
        return tuple(each for each in self.layers if not is_known or is_run_by_text(each))

    @cached_property
    def parameters(self) -> Mapping[MoeLayer, ExpertParameters]:
        """The parameters of each layer's experts."""
        return {layer: find_expert_parameters(self.module, layer) for layer in self.layers}

    @cached_property
    def expert_sets(self) -> tuple[ExpertSet, ...]:
        """All experts that tokens run, except those that lie within others."""
        return tuple(self._find_sets(self._list_inside("")))

    @cached_property
    def entangled(self) -> frozenset[MoeLayer]:
        """Layers that share some parameters of their experts, but not all of them."""
        users: dict[int, set[tuple[int, ...]]] = {}
        outermost = self._list_inside("")
        for layer in outermost:
            for identity in self.parameters[layer].identities:
                users.setdefault(identity, set()).add(self.parameters[layer].identities)
        return frozenset(
            layer
            for layer in outermost
            if not self.parameters[layer].are_apart
            or any(len(users[identity]) > 1 for identity in self.parameters[layer].identities)
        )

    @cached_property
    def num_hidden_params(self) -> int:
        """Parameters of modules that others keep where torch does not look for children."""
        seen = {id(parameter) for parameter in self.module.parameters()}
        hidden = {
            id(parameter): parameter.numel()
            for module in self.module.modules()
            for _, kept in iter_hidden_modules(module)
            for parameter in kept.parameters()
        }
        return sum(number for identity, number in hidden.items() if identity not in seen)

    @cached_property
    def unclear(self) -> frozenset[MoeLayer]:
        """Layers of which nothing shows which parameters belong to which expert."""
        return frozenset(each for each in self.run_layers if not any(self.parameters[each].sizes))

    def _list_inside(self, path: str) -> list[MoeLayer]:
        """Return the layers within a module, without those within the experts of others there."""
        inside = [each for each in self.run_layers if _is_within(each.experts_path, path)]
        return [
            layer
            for layer in inside
            if not any(
                _is_within(layer.experts_path, module)
                for other in inside
                if other is not layer and _is_within(layer.experts_path, other.block_path)
                for paths in self.parameters[other].modules
                for module in paths
            )
        ]

    def _find_sets(self, layers: list[MoeLayer]) -> Iterator[ExpertSet]:
        by_parameters: dict[tuple[int, ...], list[MoeLayer]] = {}
        for layer in layers:
            by_parameters.setdefault(self.parameters[layer].identities, []).append(layer)
        for sharing in by_parameters.values():
            parameters = self.parameters[sharing[0]]
            inner = {
                expert: tuple(self._find_sets(within))
                for expert, paths in enumerate(parameters.modules)
                if (within := [each for path in paths for each in self._list_inside(path)])
            }
            places = sum(self._places_of_blocks[layer.block_path] for layer in sharing)
            yield ExpertSet(tuple(sharing), parameters, places, inner)

    @cached_property
    def _places_of_blocks(self) -> Mapping[str, int]:
        """The number of places of the module that hold each block, by its path."""
        by_identity: dict[int, int] = {}
        waiting: list[nn.Module] = [self.module]
        blocks = {id(self.module.get_submodule(each.block_path)) for each in self.layers}
        while waiting:
            module = waiting.pop()
            by_identity[id(module)] = by_identity.get(id(module), 0) + 1
            if id(module) not in blocks or self._has_inner_blocks:
                waiting += [child for child in module._modules.values() if child is not None]
        return {
            layer.block_path: by_identity[id(self.module.get_submodule(layer.block_path))]
            for layer in self.layers
        }

    @cached_property
    def _has_inner_blocks(self) -> bool:
        """Whether a block lies within another, so that blocks have to be looked into."""
        paths = {layer.block_path for layer in self.layers}
        return any(_is_within(one, other) for one in paths for other in paths if one != other)


def _is_within(path: str, module_path: str) -> bool:
    return not module_path or path == module_path or path.startswith(f"{module_path}.")
