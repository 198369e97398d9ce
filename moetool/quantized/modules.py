"""Linear layers that hold on the meta device what bitsandbytes' hold on a GPU, and allocate alike.

Sizes, and the order in which memory is taken and given back, are those of bitsandbytes 0.50 on CUDA
(`nn.modules`, `autograd._functions` and `backends.cuda.ops`).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from moetool.quantized.operations import (
    dequantize_4bit,
    dequantize_blockwise,
    gemm_4bit,
    int8_linear_matmul,
    int8_mm_dequant,
    int8_vectorwise_quant,
)

# Weights that share a scale, and scales that share one of the second kind.
_BLOCK_SIZE = 64
_NESTED_BLOCK_SIZE = 256
_CODE_SIZE, _NESTED_CODE_SIZE = 16, 256

# Up to so many rows are multiplied with packed weights by one kernel, and a copy of the weights is
# made for more. In float32 that is so on every GPU. In 16 bits, some GPUs need no copy for up to
# 1,536 rows, which depends on the weights' shape as well: this is what holds for all.
_MOST_FUSED_ROWS = {torch.float32: 7}
_MOST_FUSED_ROWS_IN_16_BITS = 4


def hold_in_4_bits(
    module: nn.Module, name: str, *, shape: tuple[int, ...], is_nested: bool
) -> None:
    """Give a module a parameter of packed weights, and what they are dequantized by as buffers.

    bitsandbytes flattens what it packs. Here it keeps its dimensions where the last one is even, so
    that structure can still be read from it.

    Args:
        module: The module.
        name: The parameter's name; the buffers' names begin with it.
        shape: The weights' own. Two of them go to a byte.
        is_nested: Whether scales are quantized as well.
    """
    num_weights = math.prod(shape)
    num_blocks = math.ceil(num_weights / _BLOCK_SIZE)
    packed_shape: tuple[int, ...] = (math.ceil(num_weights / 2), 1)
    if shape[-1] % 2 == 0:
        packed_shape = (*shape[:-1], shape[-1] // 2)
    packed = torch.empty(packed_shape, dtype=torch.uint8, device="meta")
    module._parameters[name] = nn.Parameter(packed, requires_grad=False)
    scale_dtype = torch.uint8 if is_nested else torch.float32
    scales = torch.empty(num_blocks, dtype=scale_dtype, device="meta")
    module.register_buffer(f"{name}_absmax", scales)
    tables: dict[str, tuple[int, ...]] = {"code": (_CODE_SIZE,)}
    if is_nested:
        num_nested_blocks = math.ceil(num_blocks / _NESTED_BLOCK_SIZE)
        tables |= {
            "offset": (),
            "nested_absmax": (num_nested_blocks,),
            "nested_code": (_NESTED_CODE_SIZE,),
        }
    for table, table_shape in tables.items():
        table_of = torch.empty(table_shape, dtype=torch.float32, device="meta")
        module.register_buffer(f"{name}_{table}", table_of)


class FourBitLinear(nn.Linear):
    """As bitsandbytes' `Linear4bit`, with packed weights.

    A bias is cast to the dtype of computation by the first forward, for good. Here it keeps its
    own, so that it counts as what it is after loading.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: The bias as it is loaded, if there is one.
        is_double_quantized: Whether scales are quantized as well.
        compute_dtype: What inputs and weights are cast to, to be multiplied.
    """

    weight_absmax: torch.Tensor
    weight_offset: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: nn.Parameter | None,
        is_double_quantized: bool,
        compute_dtype: torch.dtype,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.is_double_quantized = is_double_quantized
        self.compute_dtype = compute_dtype
        shape = (out_features, in_features)
        hold_in_4_bits(self, "weight", shape=shape, is_nested=is_double_quantized)
        self.register_parameter("bias", bias)
        # No parameter or buffer of its own: it takes the place of the one that is counted.
        self._cast_bias = None if bias is None else bias.detach().to(compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, in the dtype of the input."""
        dtype = x.dtype
        x = x.to(self.compute_dtype)
        return self._multiply(x).to(dtype)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.numel() // self.in_features
        most_rows = _MOST_FUSED_ROWS.get(x.dtype, _MOST_FUSED_ROWS_IN_16_BITS)
        if num_rows <= most_rows and self.in_features % _BLOCK_SIZE == 0:
            return gemm_4bit(x.contiguous(), self.weight, out_features=self.out_features)
        absmax = self.weight_absmax
        if self.is_double_quantized:
            nested = dequantize_blockwise(absmax)
            absmax = nested + self.weight_offset
        weight = dequantize_4bit(
            self.weight, shape=(self.out_features, self.in_features), dtype=x.dtype
        )
        return nn.functional.linear(x, weight, self._cast_bias)


class Int8Linear(nn.Linear):
    """As bitsandbytes' `Linear8bitLt` with a threshold, with weights of 8 bits.

    Columns with inputs beyond the threshold are computed apart: which ones depends on the data. Here
    there are none. A few take less than the sums in 32 bits that are made in any case.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: The bias, if there is one.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty((out_features, in_features), dtype=torch.int8, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("SCB", torch.empty(out_features, dtype=torch.float32, device="meta"))
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, in the dtype of the input."""
        rows = x.reshape(-1, self.in_features)
        quantized, _scales = _quantize_rows(rows)
        product = self._multiply(quantized, dtype=x.dtype)
        return product.reshape(*x.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        sums = self._sum(rows)
        return self._dequantize(sums, dtype=dtype)

    def _sum(self, rows: torch.Tensor) -> torch.Tensor:
        sums = int8_linear_matmul(rows, self.weight)
        if self.in_features % 4:
            # cuBLAS refuses such widths.
            products = torch.matmul(rows.float(), self.weight.float().t()).to(torch.int32)
            sums.copy_(products)
        return sums

    def _dequantize(self, sums: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
        product = int8_mm_dequant(sums)
        if self.bias is not None:
            product.add_(self.bias)
        return product.to(dtype)


def _quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in 8 bits, and a scale of each."""
    halves = rows.to(torch.float16)
    return _quantize_halves(halves)


def _quantize_halves(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = rows.new_empty(rows.shape[0], dtype=torch.float32)
    quantized = int8_vectorwise_quant(rows)
    outliers = rows.abs() >= 6.0
    outliers.any()
    if rows.shape[0] > 1:
        # Stands for the zero that is written to columns with outliers.
        quantized.new_zeros(())
    return quantized, scales
