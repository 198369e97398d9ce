"""Skeletons quantized as transformers, or moetool's own loader, would quantize them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import FoundExperts, find_experts
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.top_k import find_top_k
from moetool.anatomy.routing.walk import walk_modules
from moetool.checkpoint.stated.quantization import find_method, find_stated
from moetool.errors import UsageError
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.quantizing.layout import list_converted_linears, list_packable
from moetool.quantizing.loading.packed_modules import replace_tensors
from moetool.quantizing.on_meta.experts import pack_on_meta
from moetool.quantizing.packing import ExpertMatrix, Packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def quantize_skeleton(
    skeleton: PreTrainedModel,
    quantization: Quantization,
    *,
    is_double_quantized: bool,
    experts: QuantizedExperts,
    compute_dtype: torch.dtype = torch.float32,
) -> None:
    """Quantize a skeleton in place, to hold and allocate the same memory as the quantized model.

    transformers has bitsandbytes replace only plain linear layers, except the output layer and
    layers that share its weights. Fused experts stay as they are unless `experts` says otherwise:
    then the model is that of moetool's own loader, which packs them, leaves out layers that decide
    on experts, and multiplies in the model's dtype. In a dense model it then quantizes linear layers
    only.

    Args:
        skeleton: The model on the meta device, in the dtype it is loaded in.
        quantization: The format of the weights.
        is_double_quantized: Whether scales of 4-bit weights are quantized too.
        experts: Whether fused experts are quantized too.
        compute_dtype: The dtype in which 4-bit layers multiply where transformers loads the model,
            by default that of its `BitsAndBytesConfig`.

    Raises:
        UsageError: The model can't be quantized: its weights are quantized already, have a dtype
            that bitsandbytes doesn't accept, or are not in layers that it replaces; or its experts
            can't be packed.
    """
    if quantization is Quantization.NONE:
        return
    from moetool.quantizing.on_meta.linears import FourBitLinear, Int8Linear

    _refuse_quantized(skeleton)
    packing = Packing(quantization, is_double_quantized)
    packable: list[tuple[str, nn.Module, tuple[ExpertMatrix, ...]]] = []
    found: FoundExperts | None = None
    if experts is QuantizedExperts.QUANTIZED:
        found = find_experts(skeleton)
        linears = list_converted_linears(skeleton, found=found)
        compute_dtype = skeleton.dtype
        if not found.is_dense:
            packable = _list_packable(skeleton, packing, found=found)
    else:
        linears = list(_find_linears(skeleton))
    _refuse_dtypes(linears, packable)
    if not linears and not packable:
        raise UsageError(
            f"{type(skeleton).__name__} has no layer that bitsandbytes can quantize.",
            hint="Leave out --quantization.",
        )
    holders = dict(walk_modules(skeleton))
    for path, module in linears:
        # A `Conv1D` transposes its weights, and has no attributes for its widths.
        widths = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
        out_features, in_features = widths
        if quantization is Quantization.INT8:
            quantized: nn.Linear = Int8Linear(in_features, out_features, bias=module.bias)
        else:
            quantized = FourBitLinear(
                in_features,
                out_features,
                bias=module.bias,
                is_double_quantized=is_double_quantized,
                compute_dtype=compute_dtype,
            )
        quantized.training = module.training
        holder, _, name = path.rpartition(".")
        holders[holder]._modules[name] = quantized
    _mark_as_quantized(skeleton)
    if found is not None:
        _pack_experts(skeleton, packable, packing, found=found)


def _pack_experts(
    skeleton: PreTrainedModel,
    packable: Iterable[tuple[str, nn.Module, tuple[ExpertMatrix, ...]]],
    packing: Packing,
    *,
    found: FoundExperts,
) -> None:
    """Pack experts in place; modules that shared matrices share the packed ones."""
    packed: dict[int, tuple[nn.Parameter, dict[str, nn.Parameter]]] = {}
    layers = {layer.experts_path: layer for layer in found.layers}
    for path, module, matrices in packable:
        plain = [module.get_parameter(matrix.name) for matrix in matrices]
        # Whoever receives ids knows how many.
        top_k = (
            find_top_k(skeleton, layers[path], hidden_size=matrices[0].in_features)
            if layers[path].rule is RoutingRule.SPARSE_SCORES
            else None
        )
        pack_on_meta(module, matrices, packing, top_k=top_k)
        for matrix, parameter in zip(matrices, plain, strict=True):
            names = packing.list_tensors(matrix)
            made = {name: module.get_parameter(name) for name in names}
            # Plain parameters are kept alive, so that no other gets the id of one.
            shared = packed.setdefault(id(parameter), (parameter, made))[1]
            replace_tensors(module, matrix, shared)


def _list_packable(
    skeleton: PreTrainedModel, packing: Packing, *, found: FoundExperts
) -> list[tuple[str, nn.Module, tuple[ExpertMatrix, ...]]]:
    try:
        return list_packable(skeleton, packing, found=found)
    except UsageError as error:
        raise UsageError(
            error.message, hint="Leave out --experts quantized.", facts=error.facts
        ) from error


def _mark_as_quantized(skeleton: PreTrainedModel) -> None:
    """Mark a model as quantized, which makes some models run different code."""
    from transformers import PreTrainedModel

    for _, module in walk_modules(skeleton):
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = True


def _refuse_quantized(skeleton: PreTrainedModel) -> None:
    if not find_stated(skeleton.config):
        return
    method = find_method(skeleton.config)
    raise UsageError(
        "The weights are quantized already"
        f"{f' ({method})' if method else ''}: transformers won't quantize them again.",
        hint="Leave out --quantization, or name a checkpoint in bfloat16.",
    )


def _refuse_dtypes(
    linears: Iterable[tuple[str, Any]],
    packable: Iterable[tuple[str, nn.Module, tuple[ExpertMatrix, ...]]],
) -> None:
    weights = [(path, module.weight) for path, module in linears]
    for path, module, matrices in packable:
        weights += [(path, module.get_parameter(matrix.name)) for matrix in matrices]
    for path, weight in weights:
        if weight.dtype not in _FLOATS:
            raise UsageError(
                "bitsandbytes can't quantize weights in "
                f"{str(weight.dtype).removeprefix('torch.')}.",
                hint="Give --dtype bfloat16.",
                facts=[f"seen: {path}"],
            )


def _find_linears(skeleton: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Yield the layers that transformers' `replace_with_bnb_linear` replaces, by its own rules."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    left_out = HfQuantizer.get_modules_to_not_convert(
        skeleton, None, list(skeleton._keep_in_fp32_modules or ())
    )
    for path, module in walk_modules(skeleton):
        is_linear = type(module) is nn.Linear or isinstance(module, Conv1D)
        if is_linear and should_convert_module(path, left_out):
            yield path, module
