"""The least work of one forward of a language model: weights to read, products to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import walk_modules, walk_parameters
from moetool.anatomy.skeleton.active_experts import is_run_by_text
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton

_FP8_DTYPES = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
_RULES_OF_MODULES = (RoutingRule.SEPARATE_EXPERTS, RoutingRule.ROUTER_CHOICE)


class Arithmetic(StrEnum):
    """The number formats in which weights are multiplied.

    Attributes:
        FLOAT16: 16 bits, which 4-bit weights are unpacked to.
        FLOAT32: 32 bits.
        FP8: 8-bit floats.
        INT8: 8-bit integers.
    """

    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FP8 = "fp8"
    INT8 = "int8"


@dataclass(frozen=True)
class ReadBytes:
    """The fewest bytes of weights that a forward can read.

    Attributes:
        shared: Weights that every text token runs, including the head, without tables that ids are
            looked up in.
        per_expert: One routed expert, by the module path of its layer's experts.
    """

    shared: int
    per_expert: Mapping[str, float]

    def sum_up(self, experts_touched: Mapping[str, float]) -> int:
        """Return the bytes of all layers together, with some of their experts.

        Args:
            experts_touched: Their number, by the module path of a layer's experts.
        """
        of_experts = sum(self.per_expert[path] * num for path, num in experts_touched.items())
        return self.shared + round(of_experts)


@dataclass(frozen=True)
class ProductFlops:
    """FLOPs of the products with weights: two for each weight that a token is multiplied by.

    Attributes:
        layers: FLOPs of one token, by arithmetic, without the head.
        head: FLOPs of one position's logits, by arithmetic.
    """

    layers: Mapping[Arithmetic, int]
    head: Mapping[Arithmetic, int]

    def sum_up(self, *, num_tokens: int, num_logits: int) -> dict[Arithmetic, int]:
        """Return the FLOPs by arithmetic.

        Args:
            num_tokens: The number of tokens that all layers run.
            num_logits: The number of positions that the head runs.
        """
        return {
            kind: num_tokens * self.layers.get(kind, 0) + num_logits * self.head.get(kind, 0)
            for kind in Arithmetic
        }


def count_read_bytes(skeleton: PreTrainedModel, roles: ParameterRoles) -> ReadBytes:
    """Return the bytes that a forward of text reads of a model's weights, as the skeleton holds them.

    Parameters count, and so do the buffers of modules with packed weights, which are their scales.

    Args:
        skeleton: The model on the meta device.
        roles: Those of the parameters of the same model with plain weights.
    """
    shared = 0
    per_expert = dict.fromkeys((layer.experts_path for layer in roles.layers), 0.0)
    for path, tensor in _iter_weights(skeleton):
        num_bytes = tensor.numel() * tensor.element_size()
        layer = roles.find_experts(path)
        if layer is None:
            shared += num_bytes if roles.is_run_whole(path) else 0
        elif path in roles.plain and _is_common_to_experts(roles.plain[path], layer):
            shared += num_bytes
        else:
            per_expert[layer.experts_path] += num_bytes / _count_parts(tensor, layer)
    return ReadBytes(shared, per_expert)


def count_product_flops(
    skeleton: PreTrainedModel, roles: ParameterRoles, choices: Mapping[MoeLayer, int]
) -> ProductFlops:
    """Return the FLOPs of the products of a token with a model's weights.

    Only weights of two or more dimensions count, in routed layers those of the chosen experts, or
    fewer where a token may choose identity experts. Biases, norms and attention don't count.

    Args:
        skeleton: The model on the meta device, whose dtypes say how products are computed.
        roles: Those of the parameters of the same model with plain weights, because packed ones have
            no shape.
        choices: The number of experts a token chooses in each routed layer that text runs.
    """
    stored = dict(skeleton.named_parameters(remove_duplicate=False))
    is_int8 = any(tensor.dtype is torch.int8 for tensor in stored.values())
    in_layers: Counter[Arithmetic] = Counter()
    in_head: Counter[Arithmetic] = Counter()
    for path, parameter in roles.list_each_once().items():
        kind = _find_arithmetic(stored.get(path), is_int8=is_int8)
        layer = roles.find_experts(path)
        if layer is not None:
            fewest = max(choices[layer] - layer.num_identity_experts, 0)
            in_layers[kind] += 2 * fewest * _count_multiplied_per_expert(parameter, layer)
        elif roles.is_run_whole(path) and _is_multiplied(path, parameter):
            (in_head if roles.is_head(path) else in_layers)[kind] += 2 * parameter.numel()
    return ProductFlops(layers=in_layers, head=in_head)


class ParameterRoles:
    """The role of every parameter: whether text runs it, and which experts it belongs to.

    Args:
        model: The model with plain weights.
        layers: The routed layers that text runs.

    Attributes:
        layers: Those layers.
        plain: The model's parameters by path, also by further paths of the same one.
    """

    def __init__(self, model: RoutedSkeleton, layers: Iterable[MoeLayer]) -> None:
        self.layers = tuple(layers)
        self.plain = dict(walk_parameters(model.model, is_each_once=False))
        self._placement = model.placement
        self._layer_of_module = {
            path.rpartition(".")[0]: layer
            for layer in self.layers
            for path in model.expert_parameters[layer]
        }
        self._unread = tuple(
            f"{layer.block_path}." for layer in model.layers if not is_run_by_text(layer)
        )
        head = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        head_weight = getattr(head, "weight", None)
        self._heads = {path for path, tensor in self.plain.items() if tensor is head_weight}
        modules = dict(walk_modules(model.model))
        self._tables = {path for path, each in modules.items() if isinstance(each, nn.Embedding)}
        self._modules = modules.keys()
        self._components: dict[str, Component] = {}

    def list_each_once(self) -> Mapping[str, nn.Parameter]:
        """Return each of the model's parameters by the first of its paths."""
        seen: set[int] = set()
        return {
            path: parameter
            for path, parameter in self.plain.items()
            if not (id(parameter) in seen or seen.add(id(parameter)))
        }

    def find_experts(self, path: str) -> MoeLayer | None:
        """Return the layer whose routed experts a parameter belongs to; None if it isn't an expert's."""
        holder = path.rpartition(".")[0]
        while holder:
            if holder in self._layer_of_module:
                return self._layer_of_module[holder]
            holder = holder.rpartition(".")[0]
        return None

    def is_head(self, path: str) -> bool:
        """Return whether a parameter computes the logits."""
        return path in self._heads or self._place(path) is Component.LM_HEAD

    def is_run_whole(self, path: str) -> bool:
        """Return whether each text token runs all of a parameter, unlike experts."""
        if path in self._heads:
            return True
        if path.rpartition(".")[0] in self._tables or path.startswith(self._unread):
            return False
        return self._place(path) not in (*TOWERS, Component.EMBEDDING, Component.ROUTED_EXPERTS)

    def _place(self, path: str) -> Component:
        holder = path.rpartition(".")[0]
        # The parts of a packed weight may be in modules that the plain model doesn't have.
        while holder not in self._modules:
            holder = holder.rpartition(".")[0]
            path = f"{holder}.weight"
        # Asked of each parameter twice, for its bytes and for its products.
        if path not in self._components:
            self._components[path] = self._placement.place(path).component
        return self._components[path]


def _iter_weights(skeleton: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from walk_parameters(skeleton)
    for path, module in walk_modules(skeleton):
        if any(_is_packed(p) for p in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(recurse=False):
                yield f"{path}.{name}", buffer


def _is_packed(parameter: torch.Tensor) -> bool:
    return not parameter.is_floating_point() or parameter.dtype in _FP8_DTYPES


def _find_arithmetic(stored: torch.Tensor | None, *, is_int8: bool) -> Arithmetic:
    """Return a weight's number format; a weight that is held under another path is packed."""
    if stored is None:
        return Arithmetic.INT8 if is_int8 else Arithmetic.FLOAT16
    if stored.dtype in _FP8_DTYPES:
        return Arithmetic.FP8
    if stored.dtype is torch.int8:
        return Arithmetic.INT8
    return Arithmetic.FLOAT32 if stored.dtype is torch.float32 else Arithmetic.FLOAT16


def _is_common_to_experts(parameter: torch.Tensor, layer: MoeLayer) -> bool:
    return layer.rule not in _RULES_OF_MODULES and parameter.dim() < 2


def _count_parts(tensor: torch.Tensor, layer: MoeLayer) -> int:
    """Return the number of experts that a tensor is divided among."""
    num_ids = layer.num_experts + layer.num_identity_experts
    has_all_ids = tensor.dim() > 0 and tensor.shape[0] == num_ids
    return num_ids if has_all_ids else layer.num_experts


def _count_multiplied_per_expert(parameter: torch.Tensor, layer: MoeLayer) -> int:
    num_parts = _count_parts(parameter, layer)
    # A tensor of two dimensions, the first of which counts the experts, holds a bias of each. DBRX
    # has no biases: it stacks the matrices of its experts.
    num_ids = (layer.num_experts, layer.num_experts + layer.num_identity_experts)
    is_matrix = parameter.dim() > 2 or (parameter.dim() == 2 and parameter.shape[0] not in num_ids)
    return parameter.numel() // num_parts if is_matrix else 0


def _is_multiplied(path: str, parameter: torch.Tensor) -> bool:
    is_scale = "scale" in path.rpartition(".")[2]
    return parameter.dim() >= 2 and parameter.is_floating_point() and not is_scale
