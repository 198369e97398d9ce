"""The anatomy of a model, read off its skeleton: its layers, its routing, its attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.config_fields import find_context, find_num_shared_experts, find_vocab_size
from moetool.anatomy.parameters import ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.routing_style import RoutingStyle, find_routing_style
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import walk_modules
from moetool.anatomy.skeleton.active_experts import list_expert_parameters
from moetool.anatomy.skeleton.mixers import Mixer, list_mixers
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.plain import show_fields


@dataclass(frozen=True)
class LayerAnatomy:
    """One routed layer.

    Attributes:
        stack: As in the trace's `stack` column.
        layer: The model's own layer index.
        num_experts: Routed experts.
        num_identity_experts: Experts that return their input unchanged.
        top_k: Experts that a token is routed to; None if unknown.
        expert_width: Width inside an expert; None if it can't be read off the shapes.
        style: The way in which the layer chooses; None if unknown.
    """

    stack: str
    layer: int
    num_experts: int
    num_identity_experts: int
    top_k: int | None
    expert_width: int | None
    style: RoutingStyle | None


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of a model. Of towers it has the parameters only.

    Attributes:
        model_class: transformers' class.
        num_layers: Layers of all text stacks.
        routed_layers: Those of them that route, in order.
        dense_layers: By stack, the layers that do not.
        num_shared_experts: Experts that every token of a routed layer runs; 0 without any, None if
            unknown.
        mixers: The ways in which tokens see each other.
        context_length: In tokens; None if the configuration states none.
        vocab_size: In tokens; None if the configuration states none.
        is_encoder_decoder: Whether there are two stacks. Active parameters count one token of each.
    """

    model_class: str
    num_layers: int
    routed_layers: tuple[LayerAnatomy, ...]
    dense_layers: Mapping[str, tuple[int, ...]]
    num_shared_experts: int | None
    mixers: tuple[Mixer, ...]
    context_length: int | None
    vocab_size: int | None
    is_encoder_decoder: bool

    __repr__ = show_fields


def describe_model(skeleton: RoutedSkeleton, table: ParameterTable) -> Anatomy:
    """Return the anatomy of a model.

    Args:
        skeleton: The model.
        table: Its parameter table.
    """
    config = skeleton.model.config
    routed = {(layer.stack.partition(".")[0], layer.layer) for layer in skeleton.text_layers}
    numbers = list(
        dict.fromkeys(
            (row.stack, row.layer)
            for row in table.rows
            if row.layer is not None and row.component not in TOWERS
        )
    )
    return Anatomy(
        model_class=type(skeleton.model).__name__,
        num_layers=len(numbers),
        routed_layers=tuple(_describe_layers(skeleton)),
        dense_layers={
            stack: tuple(n for s, n in numbers if s == stack and (s, n) not in routed)
            for stack in dict.fromkeys(stack for stack, _ in numbers)
        },
        num_shared_experts=count_shared_experts(config, table),
        mixers=list_mixers(skeleton),
        context_length=find_context(config),
        vocab_size=find_vocab_size(config),
        is_encoder_decoder=bool(config.is_encoder_decoder),
    )


def _describe_layers(skeleton: RoutedSkeleton) -> Iterator[LayerAnatomy]:
    model, hidden_size = skeleton.model, skeleton.hidden_size
    styles: dict[str, RoutingStyle] = {}
    for layer in skeleton.text_layers:
        kind = _name_kind(model.get_submodule(layer.block_path), layer)
        if kind not in styles:
            styles[kind] = find_routing_style(model, layer, hidden_size=hidden_size)
        yield LayerAnatomy(
            stack=layer.stack,
            layer=layer.layer,
            num_experts=layer.num_experts,
            num_identity_experts=layer.num_identity_experts,
            top_k=skeleton.top_k[layer],
            expert_width=_find_width(model, layer, hidden_size=hidden_size),
            style=styles[kind],
        )


def _name_kind(block: nn.Module, layer: MoeLayer) -> str:
    """Return a text that is the same for blocks that route alike.

    They do if their modules have the same classes, shapes and plain attributes. What is in separate
    experts takes no part in routing.
    """
    parts = [str((layer.rule, layer.num_experts, layer.num_identity_experts))]
    is_separate = layer.rule is RoutingRule.SEPARATE_EXPERTS
    closed = {layer.experts_path.removeprefix(f"{layer.block_path}.")} if is_separate else set()
    for name, module in walk_modules(block, closed=closed):
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | bool | None) and key != "layer_idx"
        }
        tensors = {**module._parameters, **module._buffers}
        shapes = {key: tuple(t.shape) for key, t in tensors.items() if t is not None}
        parts.append(f"{name} {type(module).__name__} {plain} {shapes}")
    return "\n".join(parts)


def _find_width(model: nn.Module, layer: MoeLayer, *, hidden_size: int) -> int | None:
    """Return the width inside an expert: the input width of its last matrix."""
    names = ("down_proj", "output_linear.weight", "wo.weight", "fc2.weight", "w2", "w2.weight")
    parameters = list_expert_parameters(model, layer)
    for path, parameter in parameters.items():
        if not path.endswith(names):
            continue
        rows, columns = parameter.shape[-2:]
        if parameter.dim() == 2 and parameter.shape[0] % layer.num_experts == 0 and "mlp.w" in path:
            rows //= layer.num_experts
        out = rows if columns == hidden_size else columns
        return int(out)
    return None


def count_shared_experts(config: PreTrainedConfig, table: ParameterTable) -> int:
    """Return how many shared experts there are: the stated number, or one if none is stated."""
    if table.count_components()[Component.SHARED_EXPERTS] == 0:
        return 0
    return find_num_shared_experts(config) or 1
