"""bitsandbytes' kernels as operations on the meta device, so that allocations bear their names.

bitsandbytes is not imported: that takes a second, and its own shapes differ between versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import library

# torch leaves its constructor untyped.
_make_library: Any = library.Library
_LIBRARY = _make_library("moetool", "DEF")
_ops = torch.ops.moetool


def _define(schema: str, function: Callable[..., torch.Tensor]) -> None:
    _LIBRARY.define(schema)
    _LIBRARY.impl(schema.partition("(")[0], function, "Meta")


def _as_dequantized(stored: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return stored.new_empty(shape, dtype=dtype)


def _as_product(rows: torch.Tensor, packed: torch.Tensor, out_features: int) -> torch.Tensor:
    del packed
    return rows.new_empty((*rows.shape[:-1], out_features))


_define("dequantize_4bit(Tensor stored, int[] shape, ScalarType dtype) -> Tensor", _as_dequantized)
_define("dequantize_int8(Tensor stored, int[] shape, ScalarType dtype) -> Tensor", _as_dequantized)
_define(
    "dequantize_blockwise(Tensor x) -> Tensor", lambda x: x.new_empty(x.shape, dtype=torch.float)
)
_define("gemm_4bit(Tensor rows, Tensor packed, int out_features) -> Tensor", _as_product)
_define(
    "int8_vectorwise_quant(Tensor x) -> Tensor", lambda x: torch.empty_like(x, dtype=torch.int8)
)
_define(
    "int8_linear_matmul(Tensor rows, Tensor weight) -> Tensor",
    lambda rows, weight: rows.new_empty((rows.shape[0], weight.shape[0]), dtype=torch.int32),
)
_define("int8_mm_dequant(Tensor sums) -> Tensor", lambda x: torch.empty_like(x, dtype=torch.half))


def dequantize_4bit(
    packed: torch.Tensor, *, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Return weights of a shape and dtype, dequantized from packed ones."""
    weights: torch.Tensor = _ops.dequantize_4bit(packed, shape, dtype)
    return weights


def dequantize_int8(
    stored: torch.Tensor, *, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Return weights of a shape and dtype, dequantized from 8 bits."""
    weights: torch.Tensor = _ops.dequantize_int8(stored, shape, dtype)
    return weights


def dequantize_blockwise(quantized: torch.Tensor) -> torch.Tensor:
    """Return scales in float32, dequantized from 8 bits."""
    scales: torch.Tensor = _ops.dequantize_blockwise(quantized)
    return scales


def gemm_4bit(rows: torch.Tensor, packed: torch.Tensor, *, out_features: int) -> torch.Tensor:
    """Return the product of rows with packed weights, without a dequantized copy of them."""
    product: torch.Tensor = _ops.gemm_4bit(rows, packed, out_features)
    return product


def int8_vectorwise_quant(rows: torch.Tensor) -> torch.Tensor:
    """Return rows in 8 bits."""
    quantized: torch.Tensor = _ops.int8_vectorwise_quant(rows)
    return quantized


def int8_linear_matmul(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the product of rows with weights, both in 8 bits, in 32 bits."""
    sums: torch.Tensor = _ops.int8_linear_matmul(rows, weight)
    return sums


def int8_mm_dequant(sums: torch.Tensor) -> torch.Tensor:
    """Return sums in 32 bits as float16."""
    product: torch.Tensor = _ops.int8_mm_dequant(sums)
    return product
