"""Names of the modules and parameters that hold a layer's experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moetool.errors import InputError
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place

# As transformers 5 names the parameters that hold all experts of a layer.
FUSED_NAMES = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class ExpertParameter:
    """A parameter that holds experts of a layer.

    Attributes:
        name: Its name in the model.
        expert: The expert that it belongs to; None if it holds all.
        rows_per_expert: Rows of its first dimension for each expert, in the order of ids.
    """

    name: str
    expert: int | None = None
    rows_per_expert: int = 1


@dataclass(frozen=True)
class LayerNames:
    """The names of one routed layer.

    Attributes:
        block: Module path of the block that holds the router and the experts.
        experts: Module path of the experts.
        num_experts: Routed experts and identity experts.
        parameters: Those of the experts.
        num_groups: Groups of experts that the router chooses among first; 1 without groups.
        top_groups: Groups that a token chooses from; None if unknown.
    """

    block: str
    experts: str
    num_experts: int
    parameters: tuple[ExpertParameter, ...]
    num_groups: int = 1
    top_groups: int | None = None


def guess_names(layers: Mapping[Place, RoutedLayer]) -> dict[Place, LayerNames]:
    """Return the names that follow from the module paths of a trace's metadata.

    A trace holds no names of parameters: they are those of transformers 5. Without metadata, paths
    are those of most of its models.
    """
    names = {}
    for place, layer in layers.items():
        experts = layer.module or f"model.layers.{layer.layer}.mlp.experts"
        names[place] = LayerNames(
            block=experts.rpartition(".")[0],
            experts=experts,
            num_experts=layer.num_experts + layer.num_identity_experts,
            parameters=tuple(ExpertParameter(f"{experts}.{name}") for name in FUSED_NAMES),
        )
    return names


def check_names(layers: Mapping[Place, RoutedLayer], names: Mapping[Place, LayerNames]) -> None:
    """Check that a model has the layers of a trace.

    Raises:
        InputError: A layer is not routed there, or has another number of experts.
    """
    for place, layer in layers.items():
        num_experts = layer.num_experts + layer.num_identity_experts
        found = names[place].num_experts if place in names else None
        if found != num_experts:
            seen = "has no such layer" if found is None else f"has {found} there"
            raise InputError(
                f"The trace has {num_experts} experts in layer {layer.layer} of the {layer.stack}, "
                f"and the model {seen}.",
                hint="Name the model that was traced with --model, or leave it out.",
            )
