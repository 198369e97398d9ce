"""Calls of the kernels, and the cases that they fit."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from moetool.quantizing.packing import BLOCK_SIZE, ExpertMatrix, Packing
from moetool.quantizing.unpacking import INT8_STEP, code_table, nested_table

# Assignments up to this multiple of the experts are multiplied one by one. For more, a matrix that
# several of them need is dequantized once.
_MOST_PER_EXPERT = 4
# Outputs, and blocks of 32 bytes of a row, that a program handles at the same time.
_TILE, _BLOCKS, _COLUMNS = 16, 8, 512
_NUM_WARPS = 4


@functools.cache
def has_kernels() -> bool:
    """Return whether Triton is there to compile them."""
    return importlib.util.find_spec("triton") is not None


def fits_kernel(
    rows: torch.Tensor, ids: torch.Tensor, matrix: ExpertMatrix, packing: Packing
) -> bool:
    """Return whether `multiply_each` is right for a call, and faster than dequantized matrices."""
    if not has_kernels() or not rows.is_floating_point():
        return False
    # Blocks must not span rows of a matrix.
    is_wide = matrix.in_features % BLOCK_SIZE == 0 or not packing.is_4bit
    return is_wide and 0 < ids.numel() <= _MOST_PER_EXPERT * matrix.num_experts


def multiply_each(
    rows: torch.Tensor,
    ids: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
    matrix: ExpertMatrix,
    packing: Packing,
    *,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return the product of each assignment's matrix and row, plus its bias.

    Products are added up in float32 without rounding the weights to the rows' dtype.

    Args:
        rows: One for each assignment, or for each token with the same number of assignments.
            # (num_tokens, in_features)
        ids: Experts that have a matrix. # (num_assignments,)
        tensors: The stack's tensors by name.
        matrix: The shape of each expert's matrix.
        packing: The format.
        bias: # (num_experts, out_features)

    Returns:
        # (num_assignments, out_features)
    """
    from moetool.quantizing.kernels import programs

    kernels: Any = programs
    num_assignments = len(ids)
    top_k = num_assignments // len(rows)
    out = rows.new_empty(num_assignments, matrix.out_features)
    grid = (-(-matrix.out_features // _TILE), num_assignments)
    name = matrix.name
    has_bias = bias is not None
    if not packing.is_4bit:
        kernels.multiply_int8[grid](
            rows.contiguous(),
            tensors[name],
            tensors[f"{name}_scale"],
            ids,
            bias if has_bias else out,
            out,
            matrix.out_features,
            top_k,
            WIDTH=matrix.in_features,
            STEP=INT8_STEP,
            HAS_BIAS=has_bias,
            TILE=_TILE,
            COLUMNS=_COLUMNS,
            num_warps=_NUM_WARPS,
        )
        return out
    absmax = tensors[f"{name}_absmax"]
    is_nested = packing.is_double_quantized
    nested = tensors[f"{name}_nested_absmax"] if is_nested else absmax
    num_bytes = matrix.in_features // 2
    # Either way, even places and odd ones are read in whole words.
    is_paired = rows.dtype is torch.bfloat16 and rows.is_contiguous()
    if is_paired:
        apart = rows.view(torch.int32)
    else:
        apart = rows.view(len(rows), num_bytes, 2).transpose(1, 2).contiguous()
    kernels.multiply_4bit[grid](
        apart,
        tensors[name],
        absmax,
        nested,
        tensors[f"{name}_offset"] if is_nested else absmax,
        nested_table(rows.device) if is_nested else absmax,
        code_table(packing.quantization, rows.device),
        ids,
        bias if has_bias else out,
        out,
        matrix.out_features,
        matrix.num_blocks,
        nested.shape[1],
        top_k,
        BYTES=num_bytes,
        IS_PAIRED=is_paired,
        IS_NESTED=is_nested,
        HAS_BIAS=has_bias,
        TILE=_TILE,
        BLOCKS=_BLOCKS,
        num_warps=_NUM_WARPS,
    )
    return out


def add_up_sorted(
    outputs: torch.Tensor, places: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of each token's outputs, in the outputs' dtype.

    Args:
        outputs: A row for each assignment, in any order. # (num_assignments, hidden_size)
        places: The row of each assignment in the order of tokens. # (num_assignments,)
        weights: # (num_tokens, top_k)
    """
    from moetool.quantizing.kernels import programs

    kernels: Any = programs
    num_tokens, top_k = weights.shape
    width = outputs.shape[1]
    total = outputs.new_empty(num_tokens, width)
    columns = min(1024, 1 << (width - 1).bit_length())
    kernels.add_up[(num_tokens, -(-width // columns))](
        outputs, places, weights.contiguous(), total, WIDTH=width, TOP_K=top_k, COLUMNS=columns
    )
    return total


def unpack_int8(codes: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Return matrices dequantized from 8 bits in one pass.

    Args:
        codes: # (num_experts, out_features, in_features)
        scale: # (num_experts, out_features)
        dtype: Of the result.
    """
    from moetool.quantizing.kernels import programs

    kernels: Any = programs
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    kernels.dequantize_int8[(scale.numel(),)](
        codes, scale, out, WIDTH=codes.shape[-1], STEP=INT8_STEP, COLUMNS=1024
    )
    return out
