"""Bytes of a model's weights: those that are quantized, and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.walk import walk_modules
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.layout import list_converted_linears, list_packable
from moetool.quantizing.loading.packed_modules import is_packed, list_packed_names
from moetool.quantizing.packing import ExpertMatrix, Packing


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's parameters.

    Attributes:
        experts: Packed matrices of routed experts, with their scales.
        linears: Weights of quantized linear layers, with their scales.
        plain: All other parameters.
    """

    experts: int
    linears: int
    plain: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.experts + self.linears + self.plain


def plan_bytes(
    skeleton: PreTrainedModel, choice: QuantizationChoice, *, dtype: torch.dtype
) -> WeightBytes:
    """Return the bytes that a model's parameters will take, before it is loaded.

    Args:
        skeleton: The model on the meta device, with plain weights.
        choice: The format.
        dtype: Of weights that aren't quantized. The few that transformers keeps in float32 are
            counted in this dtype too.

    Raises:
        MoetoolError: As `list_packable` does.
    """
    packing = Packing(choice.quantization, choice.is_double_quantized)
    found = find_experts(skeleton)
    packable = list_packable(skeleton, packing, found=found) if choice.quantizes_experts else []
    quantized: set[int] = set()
    experts = linears = 0
    for _, module, matrices in packable:
        for matrix in matrices:
            parameter = module.get_parameter(matrix.name)
            if id(parameter) not in quantized:
                quantized.add(id(parameter))
                experts += packing.count_bytes(matrix)
    for _, linear in list_converted_linears(skeleton, found=found):
        if id(linear.weight) not in quantized:
            quantized.add(id(linear.weight))
            linears += _count_linear(linear.weight, packing)
    rest = (p for p in skeleton.parameters() if id(p) not in quantized)
    plain = sum(
        p.numel() * (dtype.itemsize if p.is_floating_point() else p.element_size()) for p in rest
    )
    return WeightBytes(experts, linears, plain)


def count_plain_layer(model: PreTrainedModel) -> int:
    """Return the bytes of the largest layer's experts before they are packed; 0 if none are.

    At most that many are on the device unpacked while a model loads: where files hold the experts
    of a layer in one tensor.
    """
    packed: list[Any] = [module for _, module in walk_modules(model) if is_packed(module)]
    weights = (sum(m.num_experts * m.num_weights for m in each.packed_matrices) for each in packed)
    return max(weights, default=0) * model.dtype.itemsize


def _count_linear(weight: torch.Tensor, packing: Packing) -> int:
    out_features, in_features = weight.shape
    matrix = ExpertMatrix("weight", 1, out_features, in_features, is_transposed=False)
    if not packing.is_4bit:
        return packing.count_bytes(matrix)
    # bitsandbytes packs rows of an odd width as well.
    codes = math.ceil(weight.numel() / 2)
    stated = packing.list_tensors(matrix)["weight"][0]
    return codes + packing.count_bytes(matrix) - math.prod(stated)


def measure_bytes(model: PreTrainedModel) -> WeightBytes:
    """Return the bytes of a loaded model's parameters, with the scales that belong to them.

    Tables of the 16 and 256 values that codes stand for are left out.
    """
    sizes = {"experts": 0, "linears": 0, "plain": 0}
    seen: set[int] = set()
    for module in model.modules():
        packed = list_packed_names(module)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            scales = [] if name in packed else list(_iter_scales(module, parameter))
            part = "experts" if name in packed else "linears" if scales else "plain"
            sizes[part] += parameter.nbytes + sum(scale.nbytes for scale in scales)
    return WeightBytes(**sizes)


def _iter_scales(module: nn.Module, parameter: Any) -> Iterator[torch.Tensor]:
    """Yield the scales that bitsandbytes keeps for a weight; none if it is plain."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        yield state.absmax
        if state.nested:
            yield state.state2.absmax
            yield state.offset
    elif parameter.dtype is torch.int8:
        held: Any = module
        scale = parameter.SCB if parameter.SCB is not None else held.state.SCB
        if scale is not None:
            yield scale
