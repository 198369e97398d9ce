"""The parameters of a routed layer's experts, by expert, in any arrangement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.proposed.expert_groups import (
    is_router_matrix,
    list_flat_stacks,
)
from moetool.anatomy.routing.proposed.expert_updates import list_updates
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import find_wrapper, join_path
from moetool.anatomy.skeleton.active_experts import count_own, list_expert_parameters

_IN_LISTS = (RoutingRule.SEPARATE_EXPERTS, RoutingRule.ROUTER_CHOICE)


@dataclass(frozen=True)
class ExpertParameters:
    """The parameters of a layer's experts.

    Attributes:
        sizes: Of each expert, by id. 0 for identity experts.
        common: Parameters that all of the experts share.
        held: All of these parameters by path, also those that are allocated for identity experts.
        are_apart: Whether each of the others belongs to one expert alone.
        modules: By expert, the paths of the modules that it consists of; empty if the experts are not
            separate modules.
    """

    sizes: tuple[int, ...]
    common: int
    held: Mapping[str, nn.Parameter] = field(repr=False)
    are_apart: bool
    modules: tuple[tuple[str, ...], ...]

    @property
    def identities(self) -> tuple[int, ...]:
        """The identities of all parameters, the same for layers that share their experts."""
        return tuple(map(id, self.held.values()))

    @property
    def num_params(self) -> int:
        """Number of all parameters, each counted once."""
        return sum(p.numel() for p in {id(p): p for p in self.held.values()}.values())


def find_expert_parameters(model: nn.Module, layer: MoeLayer) -> ExpertParameters:
    """Return the parameters of a routed layer's experts.

    Args:
        model: The model that the layer was found in.
        layer: A layer, as the finder describes it.
    """
    modules = tuple(_list_modules(model, layer))
    if modules:
        return _of_groups([_list_parameters(model, paths) for paths in modules], modules)
    updates: list[dict[str, nn.Parameter]] = []
    if layer.rule is RoutingRule.OPERATIONS:
        updates = list(_list_updates(model, layer))
    return _of_groups(updates, ()) if updates else _of_stacks(model, layer)


def _list_modules(model: nn.Module, layer: MoeLayer) -> Iterator[tuple[str, ...]]:
    if layer.members:
        for paths in layer.members:
            yield tuple(join_path(layer.block_path, path) for path in paths)
        return
    experts = model.get_submodule(layer.experts_path)
    is_list = isinstance(experts, nn.ModuleList | nn.ModuleDict)
    if layer.rule in _IN_LISTS or (layer.rule is RoutingRule.OPERATIONS and is_list):
        # NLLB-MoE's dictionary also holds their dropout.
        has_others = len(experts._modules) > layer.num_experts
        for name, expert in experts._modules.items():
            if expert is not None and (not has_others or any(True for _ in expert.parameters())):
                yield (join_path(layer.experts_path, name),)


def _list_parameters(model: nn.Module, paths: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the parameters of several modules by path."""
    return {
        join_path(path, name): parameter
        for path in paths
        for name, parameter in model.get_submodule(path).named_parameters(remove_duplicate=False)
    }


def _list_updates(model: nn.Module, layer: MoeLayer) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the parameters of each expert that is an update of what all share, by path.

    Those that are kept where torch does not look for parameters are left out.
    """
    block = model.get_submodule(layer.experts_path)
    paths = {id(p): join_path(layer.experts_path, name) for name, p in block.named_parameters()}
    for parameters in list_updates(block):
        yield {paths[id(p)]: p for p in parameters if id(p) in paths}


def _of_groups(
    groups: Sequence[Mapping[str, nn.Parameter]], modules: tuple[tuple[str, ...], ...]
) -> ExpertParameters:
    """Return the parameters of experts, given those of each."""
    held: dict[str, nn.Parameter] = {}
    of_expert: list[dict[int, int]] = []
    for own in groups:
        held |= own
        of_expert.append({id(parameter): parameter.numel() for parameter in own.values()})
    users = Counter(identity for own in of_expert for identity in own)
    shared = {identity for identity, number in users.items() if number == len(groups) > 1}
    return ExpertParameters(
        sizes=tuple(
            sum(size for identity, size in own.items() if identity not in shared)
            for own in of_expert
        ),
        common=sum(of_expert[0][identity] for identity in shared),
        held=held,
        are_apart=all(number == 1 for identity, number in users.items() if identity not in shared),
        modules=modules,
    )


def _of_stacks(model: nn.Module, layer: MoeLayer) -> ExpertParameters:
    held = dict(_list_stacks(model, layer))
    each = {id(parameter): (parameter, own) for parameter, own in held.values()}
    per_expert = sum(own for _, own in each.values())
    return ExpertParameters(
        sizes=(per_expert,) * layer.num_experts + (0,) * layer.num_identity_experts,
        common=sum(parameter.numel() for parameter, own in each.values() if not own),
        held={path: parameter for path, (parameter, _) in held.items()},
        are_apart=True,
        modules=(),
    )


def _list_stacks(
    model: nn.Module, layer: MoeLayer
) -> Iterator[tuple[str, tuple[nn.Parameter, int]]]:
    """Yield the path of each parameter, and the parameter with what belongs to each expert."""
    if layer.rule is RoutingRule.OPERATIONS:
        yield from _list_observed_stacks(model, layer)
    else:
        for path, parameter in list_expert_parameters(model, layer).items():
            yield path, (parameter, count_own(parameter, layer))
    yield from _list_adapters(model, layer)


def _list_adapters(
    model: nn.Module, layer: MoeLayer
) -> Iterator[tuple[str, tuple[nn.Parameter, int]]]:
    """Yield the updates of low rank in PEFT's wrappers of the experts, one for each stack."""
    wrapped = layer.experts_path
    while wrapped != find_wrapper(layer.experts_path):
        wrapper_path = wrapped.rpartition(".")[0]
        wrapper = model.get_submodule(wrapper_path)
        # 1 around a parameter that is not a stack, such as a router in the same block.
        num_experts = getattr(wrapper, "num_experts", 1)
        for name, parameter in wrapper.named_parameters(remove_duplicate=False):
            path = join_path(wrapper_path, name)
            if path.startswith(f"{wrapped}."):
                continue
            if num_experts > 1 or layer.experts_path != layer.block_path:
                is_stack = num_experts > 1 and parameter.dim() > 1
                yield path, (parameter, parameter.numel() // num_experts if is_stack else 0)
        wrapped = wrapper_path


def _list_observed_stacks(
    model: nn.Module, layer: MoeLayer
) -> Iterator[tuple[str, tuple[nn.Parameter, int]]]:
    experts = model.get_submodule(layer.experts_path)
    num_experts, is_block = layer.num_experts, layer.experts_path == layer.block_path
    has_stacks = any(parameter.dim() >= 3 for parameter in experts.parameters())
    flat = () if has_stacks else list_flat_stacks(experts, num_experts)
    in_rows = {id(parameter) for parameter in flat}
    for name, parameter in experts.named_parameters(remove_duplicate=False):
        is_own = id(parameter) in in_rows or (
            _is_stack(parameter, num_experts)
            and not (is_block and is_router_matrix(name, parameter, num_experts))
        )
        if is_own or not is_block:
            own = parameter.numel() // num_experts if is_own else 0
            yield join_path(layer.experts_path, name), (parameter, own)


def _is_stack(parameter: nn.Parameter, num_experts: int) -> bool:
    """Return whether the first dimensions of a parameter count experts, in groups or not."""
    return any(
        math.prod(parameter.shape[:depth]) == num_experts for depth in range(1, parameter.dim())
    )
