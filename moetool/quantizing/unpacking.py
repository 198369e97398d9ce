"""Packed matrices of some experts, dequantized."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moetool.quantized.kinds import Quantization
from moetool.quantizing.packing import BLOCK_SIZE, NESTED_BLOCK_SIZE, ExpertMatrix, Packing

# bitsandbytes multiplies by this rounded number instead of dividing by 127.
INT8_STEP = 7.874015718698502e-3


def unpack(
    tensors: Mapping[str, torch.Tensor],
    experts: Sequence[int],
    matrix: ExpertMatrix,
    packing: Packing,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the matrices of some experts, outputs before inputs.

    Codes are multiplied by scales in float32, and the products rounded to the dtype, as
    bitsandbytes' kernels do. They run on GPUs only: on the CPU, those of bitsandbytes 0.50 are wrong
    where a row ends within a block.

    Args:
        tensors: The stack's tensors by name, as `Packing.list_tensors` names them.
        experts: Ids in ascending order.
        matrix: The shape of each expert's matrix.
        packing: The format.
        dtype: Of the result.

    Returns:
        # (len(experts), out_features, in_features)
    """
    chosen = {name: _choose(tensor, experts) for name, tensor in tensors.items()}
    codes = chosen[matrix.name]
    shape = (len(experts), matrix.out_features, matrix.in_features)
    if not packing.is_4bit:
        return _unpack_int8(codes, chosen[f"{matrix.name}_scale"], dtype=dtype)
    absmax = chosen[f"{matrix.name}_absmax"]
    if packing.is_double_quantized:
        absmax = _unpack_scales(
            absmax, chosen[f"{matrix.name}_nested_absmax"], chosen[f"{matrix.name}_offset"]
        )
    if codes.is_cuda and matrix.num_weights % BLOCK_SIZE == 0:
        import bitsandbytes  # noqa: F401 - registers the operation

        operations: Any = torch.ops
        weights: torch.Tensor = operations.bitsandbytes.dequantize_4bit.default(
            codes.reshape(-1, 1),
            absmax.reshape(-1),
            BLOCK_SIZE,
            packing.quantization.value,
            shape,
            dtype,
        )
        return weights
    return _unpack_4bit(codes, absmax, packing.quantization, dtype=dtype).view(shape)


def _choose(tensor: torch.Tensor, experts: Sequence[int]) -> torch.Tensor:
    """Return some experts' part of a tensor, a view if their ids follow each other."""
    first, last = experts[0], experts[-1]
    if last - first + 1 == len(experts):
        return tensor[first : last + 1]
    return tensor[torch.tensor(experts, device=tensor.device)]


def _unpack_int8(codes: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    if codes.is_cuda and dtype is not torch.float32:
        from moetool.quantizing.kernels.launch import has_kernels, unpack_int8

        if has_kernels():
            return unpack_int8(codes, scale, dtype=dtype)
    # In float32 in both places, in bitsandbytes' order.
    return torch.mul(codes, scale.unsqueeze(-1)).mul_(INT8_STEP).to(dtype)


def _unpack_scales(codes: torch.Tensor, nested: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    table = nested_table(codes.device)
    scales = torch.nn.functional.embedding(codes.int(), table.unsqueeze(1)).squeeze(-1)
    repeated = nested.repeat_interleave(NESTED_BLOCK_SIZE, dim=1)[:, : codes.shape[1]]
    return scales.mul_(repeated).add_(offset.unsqueeze(1))


def _unpack_4bit(
    codes: torch.Tensor, absmax: torch.Tensor, quantization: Quantization, *, dtype: torch.dtype
) -> torch.Tensor:
    """Return weights, computed by plain torch.

    Returns:
        # (num_experts, out_features * in_features)
    """
    pairs = _pair_table(quantization, codes.device)
    weights = torch.nn.functional.embedding(codes.flatten(1).int(), pairs).flatten(1)
    num_weights = weights.shape[1]
    num_whole = num_weights // BLOCK_SIZE
    whole = weights[:, : num_whole * BLOCK_SIZE].view(len(weights), num_whole, BLOCK_SIZE)
    whole.mul_(absmax[:, :num_whole, None])
    if num_weights % BLOCK_SIZE:
        weights[:, num_whole * BLOCK_SIZE :].mul_(absmax[:, num_whole:])
    return weights.to(dtype)


@functools.cache
def code_table(quantization: Quantization, device: torch.device) -> torch.Tensor:
    """Return the values of a format's 16 codes, in float32."""
    import bitsandbytes.functional as kernels

    functions: Any = kernels
    table: torch.Tensor = functions.get_4bit_type(quantization.value, device="cpu")
    return table.to(device)


@functools.cache
def nested_table(device: torch.device) -> torch.Tensor:
    """Return the values of the 256 codes of quantized scales, in float32."""
    import bitsandbytes.functional as kernels

    functions: Any = kernels
    table: torch.Tensor = functions.create_dynamic_map()
    return table.to(device)


@functools.cache
def _pair_table(quantization: Quantization, device: torch.device) -> torch.Tensor:
    """Return the two values of each byte, the higher bits' first.

    Returns:
        # (256, 2)
    """
    table = code_table(quantization, device)
    byte = torch.arange(256, device=device)
    return torch.stack([table[byte >> 4], table[byte & 15]], dim=1)
