"""The routed layers of a model, found by the structure of its modules: no table of families."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from torch import nn

from moetool.anatomy.routing.proposed.expert_groups import ExpertGroup, find_expert_groups
from moetool.anatomy.routing.proposed.expert_modules import ExpertModules, find_expert_modules
from moetool.anatomy.routing.proposed.other_experts import find_other_experts
from moetool.anatomy.routing.routing_signs import RoutingSign, describe_signs, find_routing_signs
from moetool.anatomy.routing.rules import (
    RoutingRule,
    is_grouped_linear,
    rule_of,
    stacked_parameters,
)
from moetool.anatomy.routing.shards import count_shards
from moetool.anatomy.routing.walk import find_holder, join_path
from moetool.choices import take_numbers
from moetool.errors import DenseModelError, UntraceableError, UsageError

# Beyond any model's.
_LARGEST_LAYER = 100_000
# Words in a module's path and the stacks that they mean. The first that occurs decides.
_STACK_OF_WORD = {
    "vision": "vision",
    "visual": "vision",
    "audio": "audio",
    "talker": "talker",
    "encoder": "encoder",
}

_HINT = (
    "Try a newer transformers, or trace a model whose experts take (hidden_states, ids, weights) or "
    "are separate modules next to a router."
)


@dataclass(frozen=True)
class MoeLayer:
    """A layer, or a part of one, that routes each token to experts.

    Attributes:
        stack: `decoder` in ordinary models; see the trace's `stack` column.
        layer: The model's own layer index, not the running number among routed layers.
        experts_path: Module path of the experts.
        block_path: Module path of the block that contains the router.
        num_experts: Routed experts. Larger ids are those of identity experts.
        num_identity_experts: Experts that return their input unchanged.
        rule: The rule that reads its decisions.
        members: By expert, the paths within the block of the modules that it consists of. Empty if
            the experts are one module, or the children of one.
    """

    stack: str
    layer: int
    experts_path: str
    block_path: str
    num_experts: int
    num_identity_experts: int
    rule: RoutingRule
    members: tuple[tuple[str, ...], ...] = ()

    def __hash__(self) -> int:
        # Hashed in every layer of every call that is recorded, where all fields would take longer.
        return hash(self.experts_path)


@dataclass(frozen=True)
class FoundExperts:
    """The routed experts of a model.

    Attributes:
        layers: Routed layers whose decisions a rule reads, in the model's own order of modules.
        unreadable: Module paths of experts, or of similar modules, that no rule reads.
        signs: Other signs of experts. A model without any of the three is dense.
    """

    layers: tuple[MoeLayer, ...]
    unreadable: tuple[str, ...]
    signs: tuple[RoutingSign, ...]

    @property
    def is_dense(self) -> bool:
        """Whether the model is known to have no routed experts."""
        return not (self.layers or self.unreadable or self.signs)

    @property
    def are_all_read(self) -> bool:
        """Whether all routing of the model is known. True for dense models."""
        return not (self.unreadable or self.signs)


def find_experts(model: nn.Module) -> FoundExperts:
    """Return all routed experts of a model, whether their decisions can be read or not."""
    layers = tuple(
        _describe(path, model.get_submodule(path), rule) for path, rule in _find_rules(model)
    )
    return _find_rest(model, layers)


def find_moe_layers(model: nn.Module, *, allow_inexact: bool = False) -> list[MoeLayer]:
    """Return every routed layer of a model, in the model's own order of modules.

    Args:
        model: Any model, also on the meta device.
        allow_inexact: Accept layers whose decisions are not those that the experts carry out.

    Raises:
        DenseModelError: The model has no routed experts, and nothing that suggests any.
        UntraceableError: It has routed experts, or signs of them, that no rule reads, or whose
            reading is not exact.
    """
    experts = find_proposed_experts(model)
    layers, name = experts.layers, type(model).__name__
    if not experts.are_all_read and not layers and not experts.unreadable:
        raise UntraceableError(
            f"No routed experts were recognised in {name}, and parts of it may be experts.",
            hint=_HINT,
            facts=[f"seen: {words}" for words in describe_signs(experts.signs)],
        )
    if not experts.are_all_read:
        raise UntraceableError(
            f"Can't trace {name} exactly: no rule reads the routing of some of its experts.",
            hint=_HINT,
            facts=[f"seen: {words}" for words in describe_unread(model, experts)],
        )
    if not layers:
        raise DenseModelError(
            f"{name} is a dense model: it has no router to trace.",
            hint="Name a Mixture-of-Experts model, for example 'demo'.",
        )
    reasons = {layer.rule.inexact_because for layer in layers} - {None}
    if reasons and not allow_inexact:
        raise UntraceableError(
            f"Can't trace {name} exactly: {reasons.pop()}.",
            hint="Give --allow-inexact to trace it anyway; the trace is marked as inexact.",
        )
    return list(layers)


def find_proposed_experts(model: nn.Module) -> FoundExperts:
    """Return all routed experts of a model, with what else may be experts if any are left unread.

    Each layer has a stack and a number that no other one has.
    """
    experts = find_experts(model)
    if experts.are_all_read:
        return replace(experts, layers=_tell_apart(experts.layers))
    closed = {layer.block_path for layer in experts.layers}
    groups = list(find_expert_groups(model, closed=closed))
    inside = tuple(join_path(group.block_path, "") for group in groups)
    lists = [
        found
        for found in find_expert_modules(model, closed=closed)
        if not found.experts_path.startswith(inside)
    ]
    added = [*map(_describe_proposed, groups), *map(_describe_proposed, lists)]
    return _find_rest(model, _tell_apart((*experts.layers, *added)))


def _describe_proposed(found: ExpertGroup | ExpertModules) -> MoeLayer:
    is_group = isinstance(found, ExpertGroup)
    return MoeLayer(
        stack=_name_stack(found.experts_path),
        layer=find_layer_number(found.experts_path) or 0,
        experts_path=found.experts_path,
        block_path=found.block_path,
        num_experts=found.num_experts if isinstance(found, ExpertGroup) else len(found.members),
        num_identity_experts=0,
        rule=RoutingRule.OPERATIONS if is_group else RoutingRule.SEPARATE_EXPERTS,
        members=() if isinstance(found, ExpertGroup) else found.members,
    )


def _find_rest(model: nn.Module, layers: tuple[MoeLayer, ...]) -> FoundExperts:
    """Return routed layers, with everything else that may be experts."""
    blocks = {layer.block_path for layer in layers}
    experts = {layer.experts_path for layer in layers}
    unreadable = tuple(find_other_experts(model, blocks=blocks, experts=experts))
    signs = find_routing_signs(model, blocks=blocks, experts=experts)
    return FoundExperts(layers, unreadable, signs)


def describe_unread(model: nn.Module, experts: FoundExperts) -> list[str]:
    """Return a few of the experts that no rule reads, or of the signs of experts, in words."""
    classes = [
        f"{path} ({type(model.get_submodule(path)).__name__})" for path in experts.unreadable[:2]
    ]
    return classes or describe_signs(experts.signs)


def select_layers(found: list[MoeLayer], numbers: Collection[int] | None) -> tuple[MoeLayer, ...]:
    """Return the routed layers with the given layer numbers; all of them for None.

    Raises:
        UsageError: A number has no routed layer, or is not the number of a layer.
    """
    numbers = take_numbers(numbers, name="layer", largest=_LARGEST_LAYER)
    if numbers is None:
        return tuple(found)
    routed = sorted({layer.layer for layer in found})
    wrong = sorted(set(numbers) - set(routed))
    if wrong:
        raise UsageError(
            f"Layer {wrong[0]} has no routed experts; these have: {routed}.",
            hint="Name layers that route with --layers.",
        )
    return tuple(layer for layer in found if layer.layer in numbers)


def _find_rules(model: nn.Module) -> Iterator[tuple[str, RoutingRule]]:
    """Yield the path of each layer's experts and the rule that reads them."""
    seen: set[int] = set()
    # The next one is the last, so that modules come in the order of `named_modules`.
    waiting: list[tuple[str, nn.Module, nn.Module | None]] = [("", model, None)]
    while waiting:
        path, module, parent = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        rule = rule_of(module, name=path.rpartition(".")[2], parent=parent)
        if rule is not None:
            yield path, rule
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        if rule is RoutingRule.SEPARATE_EXPERTS and not _routes_within(children[0][1]):
            # Experts are alike, and there may be thousands.
            continue
        waiting += [
            (f"{path}.{name}" if path else name, child, module)
            for name, child in reversed(children)
        ]


def _routes_within(expert: nn.Module) -> bool:
    return any(True for _ in _find_rules(expert))


def _describe(path: str, experts: nn.Module, rule: RoutingRule) -> MoeLayer:
    parameters = _stacked(experts)
    # Those of all processes, if each holds some.
    stacked = [parameter.shape[0] for parameter in parameters]
    num_experts = getattr(experts, "num_experts", None)
    if not isinstance(num_experts, int) and rule is RoutingRule.SEPARATE_EXPERTS:
        num_experts = len(list(experts.children()))
    num_shards = count_shards(parameters)
    if isinstance(num_experts, int) and num_shards > 1:
        num_experts = _add_up(num_experts, num_shards, total=min(stacked), path=path)
    # LongCat-Flash allocates one of its two matrices for the identity experts as well.
    num_routed = num_experts if isinstance(num_experts, int) else min(stacked)
    # If the block itself holds the experts, the router is one of its children.
    holds_router = rule in (RoutingRule.SORTED_ROWS, RoutingRule.RETRIEVAL)
    return MoeLayer(
        stack=_name_stack(path),
        layer=find_layer_number(path) or 0,
        experts_path=path,
        block_path=path if holds_router else find_holder(path),
        num_experts=num_routed,
        num_identity_experts=max([num_routed, *stacked]) - num_routed,
        rule=rule,
    )


def _add_up(num_held: int, num_shards: int, *, total: int, path: str) -> int:
    """Return the number of experts of all processes, each of which states those that it holds."""
    if num_held * num_shards != total:
        raise UntraceableError(
            f"{path} holds {total} experts, but each of {num_shards} processes says it has "
            f"{num_held}.",
            hint="Load the model with transformers' own expert-parallel plan.",
        )
    return total


def _name_stack(path: str) -> str:
    stack = next((stack for word, stack in _STACK_OF_WORD.items() if word in path), "decoder")
    # JetMoE routes twice in each layer: among attention experts, and among MLP experts.
    return f"{stack}.attention" if "attention" in path or "attn" in path else stack


def find_layer_number(path: str) -> int | None:
    """Return the number of the layer that a module or parameter is in; None outside layers."""
    number = re.search(r"(?:^|\.)(\d+)(?=\.|$)", path)
    return int(number[1]) if number else None


def _stacked(experts: nn.Module) -> list[nn.Parameter]:
    grouped = [child for child in experts.children() if is_grouped_linear(child)]
    return [p for module in (experts, *grouped) for p in stacked_parameters(module)]


def _tell_apart(layers: tuple[MoeLayer, ...]) -> tuple[MoeLayer, ...]:
    """Make the stacks of layers that share a stack and a number distinct, by their blocks' names or their paths."""
    shared = Counter((layer.stack, layer.layer) for layer in layers)
    named = [
        replace(layer, stack=f"{layer.stack}.{layer.block_path.rpartition('.')[2]}")
        if shared[layer.stack, layer.layer] > 1
        else layer
        for layer in layers
    ]
    again = Counter((layer.stack, layer.layer) for layer in named)
    return tuple(
        replace(layer, stack=f"{layer.stack}.{layer.experts_path}")
        if again[layer.stack, layer.layer] > 1
        else layer
        for layer in named
    )
