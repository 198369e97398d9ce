"""Linear layers on the meta device with the same tensors and allocations as bitsandbytes' on a GPU.

Sizes, and the order of allocations and frees, are those of bitsandbytes 0.50 on CUDA (`nn.modules`,
`autograd._functions` and `backends.cuda.ops`).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from moetool.quantizing.on_meta.operations import (
    dequantize_4bit,
    dequantize_blockwise,
    gemm_4bit,
    int8_linear_matmul,
    int8_mm_dequant,
    int8_vectorwise_quant,
)

# The number of weights that share a scale, and of scales that share a nested one.
_BLOCK_SIZE = 64
_NESTED_BLOCK_SIZE = 256
_CODE_SIZE, _NESTED_CODE_SIZE = 16, 256

# Up to this many rows are multiplied with packed weights by one kernel; for more, a copy of the
# weights is made. In float32 this holds on every GPU. In 16 bits, some GPUs need no copy for up to
# 1,536 rows, depending on the weights' shape: this number holds on all of them.
_MOST_FUSED_ROWS = {torch.float32: 7}
_MOST_FUSED_ROWS_IN_16_BITS = 4


def hold_in_4_bits(
    module: nn.Module, name: str, *, shape: tuple[int, ...], is_nested: bool
) -> None:
    """Give a module a parameter of packed weights, and the scales and tables for them as buffers.

    bitsandbytes flattens the weights that it packs. Here they keep their dimensions if the last one
    is even, so that the structure can still be read from them.

    Args:
        name: The parameter's name; the buffers' names begin with it.
        shape: The shape of the plain weights, two of which share a byte.
        is_nested: Whether scales are quantized too.
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
    # `register_buffer` takes several times as long, and a model may have thousands of experts.
    module._buffers[f"{name}_absmax"] = scales
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
        module._buffers[f"{name}_{table}"] = table_of


class FourBitLinear(nn.Linear):
    """A counterpart of bitsandbytes' `Linear4bit`, with packed weights.

    There, the first forward casts the bias to the compute dtype for good. Here the bias keeps its
    dtype, so that its size after loading is the one that counts.

    Args:
        in_features: The number of inputs.
        out_features: The number of outputs.
        bias: The bias as it is loaded, if there is one.
        is_double_quantized: Whether scales are quantized too.
        compute_dtype: The dtype in which inputs and weights are multiplied.
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
        # Not a parameter or buffer: it would take the place of the bias that is counted.
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
    """A counterpart of bitsandbytes' `Linear8bitLt` with a threshold and 8-bit weights.

    There, columns with inputs beyond the threshold are computed separately, and the data decides
    which. Here there are none: a few would need less memory than the 32-bit sums, which are
    allocated in any case.

    Args:
        in_features: The number of inputs.
        out_features: The number of outputs.
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
    """Return rows in 8 bits, and a scale for each."""
    halves = rows.to(torch.float16)
    return _quantize_halves(halves)


def _quantize_halves(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = rows.new_empty(rows.shape[0], dtype=torch.float32)
    quantized = int8_vectorwise_quant(rows)
    outliers = rows.abs() >= 6.0
    outliers.any()
    if rows.shape[0] > 1:
        # The zero that bitsandbytes writes to columns with outliers.
        quantized.new_zeros(())
    return quantized, scales
