"""Names of a model's experts, and the groups of its routers, from its skeleton."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING

from moetool.analysis.selection.names import ExpertParameter, LayerNames
from moetool.checkpoint.reference import resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.choices import take_path
from moetool.trace.reading.layer_shapes import Place

if TYPE_CHECKING:
    from torch import nn

    from moetool.anatomy.routing.moe_layers import MoeLayer


def read_expert_names(model: str | PathLike[str]) -> dict[Place, LayerNames]:
    """Return the names of every routed layer's modules and parameters, without any weights.

    Args:
        model: A folder, a `config.json`, a Hub id, a name of the catalogue, or `demo`.

    Raises:
        InputError: There is no such model, or its configuration can't be used.
        DenseModelError: It has no routed experts.
        UntraceableError: No rule reads its experts.
    """
    take_path(model, name="model")
    subject = find_subject(resolve_model(model), source=AskedSource.SKELETON, revision=None)
    # These import torch, which takes seconds: a missing model is reported before.
    from moetool.anatomy.routing.moe_layers import find_moe_layers
    from moetool.anatomy.routing.routing_style import RoutingStyle, find_routing_style
    from moetool.anatomy.skeleton.build import build_whole_skeleton, refuse_unbuildable
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
    from moetool.checkpoint.config import make_config

    config = make_config(
        subject.config,
        name=subject.model,
        label=subject.label,
        code=None,
        revision=subject.revision,
        trust_remote_code=False,
        by_architecture=True,
    )
    with refuse_unbuildable(subject.model, config, trust_remote_code=False):
        skeleton = RoutedSkeleton.of(build_whole_skeleton(config))
    # Routers of one stack and size choose alike.
    styles: dict[tuple[str, int], RoutingStyle] = {}
    names = {}
    for layer in find_moe_layers(skeleton.model, allow_inexact=True):
        kind = (layer.stack, layer.num_experts)
        if kind not in styles:
            styles[kind] = find_routing_style(
                skeleton.model, layer, hidden_size=skeleton.hidden_size
            )
        num_groups = styles[kind].num_groups
        names[layer.stack, layer.layer] = LayerNames(
            block=layer.block_path,
            experts=layer.experts_path,
            num_experts=layer.num_experts + layer.num_identity_experts,
            parameters=tuple(
                _list_parameters(skeleton.model.get_submodule(layer.experts_path), layer)
            ),
            num_groups=num_groups,
            top_groups=styles[kind].num_chosen_groups if num_groups > 1 else None,
        )
    return names


def _list_parameters(experts: nn.Module, layer: MoeLayer) -> Iterator[ExpertParameter]:
    num_experts = layer.num_experts
    holds_router = layer.experts_path == layer.block_path
    for name, parameter in experts.named_parameters():
        full_name = f"{layer.experts_path}.{name}"
        # Separate experts are children named by a number, in Switch `expert_0`.
        number = name.partition(".")[0].removeprefix("expert_")
        if number.isdecimal():
            yield ExpertParameter(full_name, expert=int(number))
        elif holds_router and parameter.dim() < 3:
            continue
        elif parameter.shape[0] in (num_experts, num_experts + layer.num_identity_experts):
            yield ExpertParameter(full_name)
        elif parameter.dim() > 1 and parameter.shape[0] % num_experts == 0:
            # DBRX stacks its experts along the rows of a matrix.
            yield ExpertParameter(full_name, rows_per_expert=parameter.shape[0] // num_experts)
