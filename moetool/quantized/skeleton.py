"""Skeletons whose layers are quantized as transformers and bitsandbytes would quantize them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer, find_experts
from moetool.anatomy.skeleton.active_experts import list_expert_parameters
from moetool.checkpoint.stated.quantization import find_method, find_stated
from moetool.errors import UsageError
from moetool.quantized.kinds import Quantization, QuantizedExperts

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
    then their matrices are stored as by `bitsandbytes.nn.parametrize.replace_parameter_4bit`, and
    all of them are dequantized whenever they run. The same goes for 8 bits, which no library does
    today.

    Args:
        skeleton: The model on the meta device, in the dtype it is loaded in.
        quantization: The format of the weights.
        is_double_quantized: Whether scales of 4-bit weights are quantized too.
        experts: Whether fused experts are quantized too.
        compute_dtype: The dtype in which 4-bit layers multiply, by default that of transformers'
            `BitsAndBytesConfig`.

    Raises:
        UsageError: The model can't be quantized: its weights are quantized already, have a dtype
            that bitsandbytes doesn't accept, or are not in layers that it replaces.
    """
    if quantization is Quantization.NONE:
        return
    from moetool.quantized.experts import quantize_parameters
    from moetool.quantized.modules import FourBitLinear, Int8Linear

    _refuse_quantized(skeleton)
    linears = list(_find_linears(skeleton))
    fused = list(_find_fused(skeleton)) if experts is QuantizedExperts.QUANTIZED else []
    if not linears and not fused:
        raise UsageError(
            f"{type(skeleton).__name__} has no layer that bitsandbytes can quantize.",
            hint="Leave out --quantization.",
        )
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
        skeleton.set_submodule(path, quantized.train(module.training))
    _mark_as_quantized(skeleton)
    num_bits = 8 if quantization is Quantization.INT8 else 4
    for owner, names in fused:
        quantize_parameters(
            owner, names, num_bits=num_bits, is_double_quantized=is_double_quantized
        )


def _mark_as_quantized(skeleton: PreTrainedModel) -> None:
    """Mark a model as quantized, which makes some models run different code."""
    from transformers import PreTrainedModel

    for module in skeleton.modules():
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


def _refuse_dtype(path: str, weight: torch.Tensor) -> None:
    if weight.dtype in _FLOATS:
        return
    raise UsageError(
        f"bitsandbytes can't quantize weights in {str(weight.dtype).removeprefix('torch.')}.",
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
    for path, module in skeleton.named_modules():
        is_linear = type(module) is nn.Linear or isinstance(module, Conv1D)
        if is_linear and should_convert_module(path, left_out):
            _refuse_dtype(path, module.weight)
            yield path, module


def _find_fused(skeleton: PreTrainedModel) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield modules that hold several experts' matrices in one parameter, with those parameters."""
    found: dict[nn.Module, list[str]] = {}
    for layer in find_experts(skeleton).layers:
        for path, parameter in list_expert_parameters(skeleton, layer).items():
            owner_path, _, name = path.rpartition(".")
            owner = skeleton.get_submodule(owner_path)
            if _is_fused(owner, parameter, layer) and name not in found.get(owner, ()):
                _refuse_dtype(path, parameter)
                found.setdefault(owner, []).append(name)
    for owner, names in found.items():
        yield owner, tuple(names)


def _is_fused(owner: nn.Module, parameter: nn.Parameter, layer: MoeLayer) -> bool:
    if isinstance(owner, nn.Linear | nn.Embedding) or parameter.dim() < 2:
        return False
    # One bias for each expert isn't a matrix. DBRX stacks the matrices of its experts.
    num_experts = layer.num_experts + layer.num_identity_experts
    return parameter.dim() > 2 or parameter.shape[0] != num_experts
