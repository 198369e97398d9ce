"""What a model is like: its layers, its routing, its attention, read off its skeleton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.config_fields import find_context, find_num_shared_experts, find_vocab_size
from moetool.anatomy.parameters import ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.routing_style import RoutingStyle, describe_routing
from moetool.anatomy.skeleton.active_experts import is_run_by_text, list_expert_parameters
from moetool.anatomy.skeleton.mixers import Mixer, list_mixers
from moetool.anatomy.skeleton.placement import Placement


@dataclass(frozen=True)
class RoutedLayer:
    """One routed layer.

    Attributes:
        stack: As in the trace's `stack` column.
        layer: The model's own layer index.
        num_experts: Routed experts.
        num_identity_experts: Experts that return their input unchanged.
        top_k: Experts that a token is routed to; None if unknown.
        expert_width: Width inside an expert; None if its shapes do not tell.
        style: How the layer chooses; None if unknown.
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
    """What a model is like. Towers are left out but for their parameters.

    Attributes:
        model_class: transformers' class.
        num_layers: Layers of all text stacks.
        routed_layers: Those of them that route, in order.
        dense_layers: By stack, the layers that do not.
        num_shared_experts: Experts that every token of a routed layer runs; 0 without any.
        mixers: How tokens see each other.
        context_length: Positions; None if the configuration states none.
        vocab_size: Tokens; None likewise.
        is_encoder_decoder: Whether it has two stacks, of which a token each is counted as active.
    """

    model_class: str
    num_layers: int
    routed_layers: tuple[RoutedLayer, ...]
    dense_layers: Mapping[str, tuple[int, ...]]
    num_shared_experts: int
    mixers: tuple[Mixer, ...]
    context_length: int | None
    vocab_size: int | None
    is_encoder_decoder: bool


def describe_model(
    model: PreTrainedModel,
    moe_layers: Sequence[MoeLayer],
    table: ParameterTable,
    *,
    top_k: Mapping[MoeLayer, int | None],
    hidden_size: int,
) -> Anatomy:
    """Return what a model is like.

    Args:
        model: Its skeleton.
        moe_layers: Its routed layers.
        table: Its parameter table.
        top_k: How many experts each routed layer chooses.
        hidden_size: Width of its hidden states.
    """
    read_by_text = [layer for layer in moe_layers if is_run_by_text(layer)]
    routed = {(layer.stack.partition(".")[0], layer.layer) for layer in read_by_text}
    numbers = list(
        dict.fromkeys(
            (row.stack, row.layer)
            for row in table.rows
            if row.layer is not None and row.component not in TOWERS
        )
    )
    return Anatomy(
        model_class=type(model).__name__,
        num_layers=len(numbers),
        routed_layers=tuple(_describe_layers(model, read_by_text, top_k, hidden_size)),
        dense_layers={
            stack: tuple(n for s, n in numbers if s == stack and (s, n) not in routed)
            for stack in dict.fromkeys(stack for stack, _ in numbers)
        },
        num_shared_experts=_count_shared(model.config, table),
        mixers=list_mixers(model, Placement(model, moe_layers)),
        context_length=find_context(model.config),
        vocab_size=find_vocab_size(model.config),
        is_encoder_decoder=bool(model.config.is_encoder_decoder),
    )


def _describe_layers(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    top_k: Mapping[MoeLayer, int | None],
    hidden_size: int,
) -> list[RoutedLayer]:
    styles: dict[str, RoutingStyle] = {}
    described = []
    for layer in layers:
        kind = _name_kind(model.get_submodule(layer.block_path), layer)
        if kind not in styles:
            styles[kind] = describe_routing(model, layer, hidden_size=hidden_size)
        described.append(
            RoutedLayer(
                stack=layer.stack,
                layer=layer.layer,
                num_experts=layer.num_experts,
                num_identity_experts=layer.num_identity_experts,
                top_k=top_k[layer],
                expert_width=_find_width(model, layer, hidden_size=hidden_size),
                style=styles[kind],
            )
        )
    return described


def _name_kind(block: nn.Module, layer: MoeLayer) -> str:
    """Return a text that is the same for blocks that route alike.

    Two blocks do if their modules have the same classes, shapes and plain attributes.
    """
    parts = [str((layer.rule, layer.num_experts, layer.num_identity_experts))]
    for name, module in block.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | bool | None) and key != "layer_idx"
        }
        parts.append(f"{name} {type(module).__name__} {plain}")
    parts += [f"{name} {tuple(tensor.shape)}" for name, tensor in block.state_dict().items()]
    return "\n".join(parts)


def _find_width(model: nn.Module, layer: MoeLayer, *, hidden_size: int) -> int | None:
    """Return the width inside an expert: what its matrix out of it has besides its output's."""
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


def _count_shared(config: PreTrainedConfig, table: ParameterTable) -> int:
    """Return how many shared experts there are: as stated, and one where none is stated."""
    if table.count_components()[Component.SHARED_EXPERTS] == 0:
        return 0
    return find_num_shared_experts(config) or 1
