"""The size of a routed layer's experts, and of the part that moves at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import walk_modules
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton

_RULES_OF_MODULES = (RoutingRule.SEPARATE_EXPERTS, RoutingRule.ROUTER_CHOICE)


@dataclass(frozen=True)
class LayerExperts:
    """The routed experts of one layer.

    Attributes:
        paths: The modules that hold all of them and nothing else.
        num_bytes: Their size.
        moved_bytes: The part that accelerate moves to the GPU at once, the parameters of one module.
        are_separate: Whether each expert is a module, so that only those that run are moved.
    """

    layer: MoeLayer
    paths: tuple[str, ...]
    num_bytes: int
    moved_bytes: int
    are_separate: bool

    def count_read_bytes(self, *, num_experts: int) -> int:
        """Return the bytes of this many of them, rounded up."""
        num_read = min(num_experts, self.layer.num_experts)
        return -(-self.num_bytes * num_read // self.layer.num_experts)

    def count_moved_bytes(self, *, num_experts: int) -> int:
        """Return the bytes that cross the bus in a forward that chooses this many of them."""
        return (
            self.count_read_bytes(num_experts=num_experts)
            if self.are_separate
            else (self.num_bytes)
        )


def list_layer_experts(skeleton: RoutedSkeleton) -> tuple[LayerExperts, ...]:
    """Return the routed experts that text runs, layer by layer, in the model's own order.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
    """
    return tuple(_describe(skeleton, layer) for layer in skeleton.text_layers)


def _describe(skeleton: RoutedSkeleton, layer: MoeLayer) -> LayerExperts:
    holders = list(_find_holders(skeleton, layer))
    own = [
        _count_own(module)
        for path in holders
        for _, module in walk_modules(skeleton.model.get_submodule(path))
    ]
    return LayerExperts(
        layer=layer,
        paths=tuple(holders),
        num_bytes=sum(own),
        moved_bytes=max(own),
        are_separate=layer.rule in _RULES_OF_MODULES,
    )


def _find_holders(skeleton: RoutedSkeleton, layer: MoeLayer) -> Iterator[str]:
    """Yield the paths of the modules that hold a layer's experts and nothing else."""
    if layer.experts_path != layer.block_path:
        yield layer.experts_path
        return
    parameters = skeleton.expert_parameters[layer]
    yield from dict.fromkeys(path.rpartition(".")[0] for path in parameters)


def _count_own(module: nn.Module) -> int:
    """Return the bytes of a module's own tensors, each of which counts once."""
    tensors = {*module._parameters.values(), *module._buffers.values()}
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
