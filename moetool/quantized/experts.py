"""Experts with packed weights, all of which are dequantized whenever their module runs."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from moetool.quantized.modules import hold_in_4_bits
from moetool.quantized.operations import (
    dequantize_4bit,
    dequantize_blockwise,
    dequantize_int8,
)


def quantize_parameters(
    module: nn.Module, names: Collection[str], *, num_bits: int, is_double_quantized: bool
) -> None:
    """Store some of a module's own parameters in fewer bits, in place.

    In 4 bits this works like bitsandbytes' `nn.parametrize.replace_parameter_4bit`: reading such a
    parameter returns all of it in its former dtype, and the result is kept while the module's
    forward runs. In 8 bits it works in the same way with a scale for each row, which no library
    does today.

    Args:
        module: The module, on the meta device.
        names: The parameters' names.
        num_bits: The bits of each weight, 4 or 8.
        is_double_quantized: Whether scales of 4-bit weights are quantized too.
    """
    layouts = {}
    for name in names:
        weight = module._parameters[name]
        assert weight is not None
        layouts[name] = (tuple(weight.shape), weight.dtype)
        if num_bits == 8:
            stored = torch.empty_like(weight, dtype=torch.int8, requires_grad=False)
            module._parameters[name] = nn.Parameter(stored, requires_grad=False)
            num_rows = weight.numel() // weight.shape[-1]
            scales = torch.empty(num_rows, dtype=torch.float32, device="meta")
            module.register_buffer(f"{name}_scale", scales)
        else:
            hold_in_4_bits(module, name, shape=tuple(weight.shape), is_nested=is_double_quantized)
    # Plain values that the class reads, so that identical layers are recognized as such.
    module.__dict__.update(_layouts=layouts, _dequantized=None)
    module_class: Any = type(module)
    module.__class__ = _reading_dequantized(module_class, tuple(names))
    module.register_forward_pre_hook(_begin_to_keep)
    module.register_forward_hook(_stop_keeping, always_call=True)


@functools.cache
def _reading_dequantized(module_class: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass whose named parameters are dequantized when they are read."""
    readers: dict[str, Any] = {
        name: property(functools.partial(_read, name=name)) for name in names
    }
    return type(
        module_class.__name__, (module_class,), {"__module__": module_class.__module__, **readers}
    )


def _read(module: Any, name: str) -> torch.Tensor:
    kept: dict[str, torch.Tensor] | None = module._dequantized
    if kept is not None and name in kept:
        return kept[name]
    weight = _dequantize(module, name)
    if kept is not None:
        kept[name] = weight
    return weight


def _dequantize(module: Any, name: str) -> torch.Tensor:
    stored = module._parameters[name]
    shape, dtype = module._layouts[name]
    if stored.dtype is torch.int8:
        return dequantize_int8(stored, shape=shape, dtype=dtype)
    absmax = module._buffers[f"{name}_absmax"]
    if absmax.dtype is not torch.float32:
        absmax = dequantize_blockwise(absmax)
    return dequantize_4bit(stored, shape=shape, dtype=dtype)


def _begin_to_keep(module: Any, *_: object) -> None:
    module._dequantized = {}


def _stop_keeping(module: Any, *_: object) -> None:
    module._dequantized = None
