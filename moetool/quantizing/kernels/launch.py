"""Calls of the kernels, and the cases that they fit."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from moetool.quantizing.gating import Gating
from moetool.quantizing.kernels.launcher import Launcher
from moetool.quantizing.packing import BLOCK_SIZE, ExpertMatrix, Packing
from moetool.quantizing.unpacking import INT8_STEP, code_table, nested_table

# Assignments up to this multiple of the experts are multiplied one by one. For more, a matrix that
# several of them need is dequantized once.
_MOST_PER_EXPERT = 4
# Outputs that a program makes, and bytes of a row that it reads at a time.
_TILE, _SPAN, _INT8_SPAN = 16, 256, 512
# A program that goes through a token's experts one after the other makes fewer outputs, unless there
# are as many programs as this, so that all parts of a GPU have work.
_SUM_TILE, _MANY_PROGRAMS = 4, 512
_NUM_WARPS = 4


@functools.cache
def has_kernels() -> bool:
    """Return whether Triton is there to compile them."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def fits_matrix(matrix: ExpertMatrix, packing: Packing) -> bool:
    """Return whether the kernels can multiply with a stack of matrices."""
    # Blocks must not span rows of a matrix.
    return matrix.in_features % BLOCK_SIZE == 0 or not packing.is_4bit


def fits_kernel(
    rows: torch.Tensor, ids: torch.Tensor, matrix: ExpertMatrix, packing: Packing
) -> bool:
    """Return whether the kernels are right for a call, and faster than dequantized matrices."""
    if not has_kernels() or not rows.is_floating_point():
        return False
    is_few = 0 < ids.numel() <= _MOST_PER_EXPERT * matrix.num_experts
    return is_few and fits_matrix(matrix, packing)


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
        ids: Experts; those beyond the matrices give zeros. # (num_assignments,)
        tensors: The stack's tensors by name.
        matrix: The shape of each expert's matrix.
        packing: The format.
        bias: # (num_experts, out_features)

    Returns:
        # (num_assignments, out_features)
    """
    num_assignments = len(ids)
    launcher = _prepare(
        "multiply_each",
        matrix,
        packing,
        num_assignments,
        num_assignments // len(rows),
        bias is not None,
    )
    out = rows.new_empty(num_assignments, matrix.out_features)
    stack = _list_stack(tensors, matrix, packing)
    launcher(rows.contiguous(), *stack, ids, out if bias is None else bias, out)
    return out


def multiply_gated(
    rows: torch.Tensor,
    ids: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
    matrix: ExpertMatrix,
    packing: Packing,
    gating: Gating,
    *,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return each assignment's product, one half of it gated with the other.

    Args:
        rows: One for each token. # (num_tokens, in_features)
        ids: Experts; those beyond the matrices give zeros. # (num_tokens, top_k)
        tensors: The stack's tensors by name.
        matrix: The shape of each expert's matrix.
        packing: The format.
        gating: What the halves are, and how one opens the other.
        bias: # (num_experts, out_features)

    Returns:
        # (num_tokens * top_k, out_features // 2)
    """
    num_assignments, top_k = ids.numel(), ids.shape[1]
    launcher = _prepare(
        "multiply_gated", matrix, packing, num_assignments, top_k, bias is not None, gating
    )
    out = rows.new_empty(num_assignments, matrix.out_features // 2)
    stack = _list_stack(tensors, matrix, packing)
    launcher(rows.contiguous(), *stack, ids.contiguous(), out if bias is None else bias, out)
    return out


def multiply_and_add_up(
    rows: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
    matrix: ExpertMatrix,
    packing: Packing,
    *,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return the weighted sum of each token's products.

    Args:
        rows: One for each assignment. # (num_tokens * top_k, in_features)
        ids: Experts; those beyond the matrices give zeros. # (num_tokens, top_k)
        weights: # (num_tokens, top_k)
        tensors: The stack's tensors by name.
        matrix: The shape of each expert's matrix.
        packing: The format.
        bias: # (num_experts, out_features)

    Returns:
        # (num_tokens, out_features)
    """
    num_tokens, top_k = ids.shape
    launcher = _prepare("multiply_and_add_up", matrix, packing, num_tokens, top_k, bias is not None)
    out = rows.new_empty(num_tokens, matrix.out_features)
    launcher(
        rows,
        *_list_stack(tensors, matrix, packing),
        ids.contiguous(),
        out if bias is None else bias,
        weights.contiguous(),
        out,
    )
    return out


@functools.cache
def _prepare(
    name: str,
    matrix: ExpertMatrix,
    packing: Packing,
    num_results: int,
    top_k: int,
    has_bias: bool,
    gating: Gating | None = None,
) -> Launcher:
    """Return a program for one shape, with as many results as its grid has columns."""
    tile = _TILE
    if name == "multiply_and_add_up" and num_results * matrix.out_features < _TILE * _MANY_PROGRAMS:
        tile = _SUM_TILE
    constants: dict[str, Any] = {
        "NUM_EXPERTS": matrix.num_experts,
        "OUT": matrix.out_features,
        "WIDTH": matrix.in_features,
        "TOP_K": top_k,
        "IS_4BIT": packing.is_4bit,
        "IS_NESTED": packing.is_4bit and packing.is_double_quantized,
        "HAS_BIAS": has_bias,
        "STEP": INT8_STEP,
        "TILE": tile,
        "SPAN": _SPAN if packing.is_4bit else _INT8_SPAN,
    }
    if gating is not None:
        constants |= {
            "IS_INTERLEAVED": gating.is_interleaved,
            "LIMIT": gating.limit or 0.0,
            "ALPHA": gating.alpha,
            "SHIFT": gating.shift,
        }
    grid = (-(-matrix.out_features // tile), num_results, 1)
    return Launcher(name, grid, constants, num_warps=_NUM_WARPS)


def _list_stack(
    tensors: Mapping[str, torch.Tensor], matrix: ExpertMatrix, packing: Packing
) -> tuple[torch.Tensor, ...]:
    """Return a stack's tensors and the tables for them, in the order of the programs."""
    name = matrix.name
    codes = tensors[name]
    if not packing.is_4bit:
        return (codes, *(tensors[f"{name}_scale"],) * 5)
    absmax, table = tensors[f"{name}_absmax"], code_table(packing.quantization, codes.device)
    if not packing.is_double_quantized:
        return (codes, absmax, absmax, absmax, absmax, table)
    nested, offset = tensors[f"{name}_nested_absmax"], tensors[f"{name}_offset"]
    return (codes, absmax, nested, offset, nested_table(codes.device), table)


def add_up_sorted(
    outputs: torch.Tensor, places: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of each token's outputs, in the outputs' dtype.

    Args:
        outputs: A row for each assignment, in any order. # (num_assignments, hidden_size)
        places: The row of each assignment in the order of tokens. # (num_assignments,)
        weights: # (num_tokens, top_k)
    """
    num_tokens, top_k = weights.shape
    width = outputs.shape[1]
    total = outputs.new_empty(num_tokens, width)
    columns = min(1024, 1 << (width - 1).bit_length())
    grid = (num_tokens, -(-width // columns), 1)
    constants = {"WIDTH": width, "TOP_K": top_k, "COLUMNS": columns}
    Launcher("add_up", grid, constants)(outputs, places, weights.contiguous(), total)
    return total


def unpack_int8(codes: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Return matrices dequantized from 8 bits in one pass.

    Args:
        codes: # (num_experts, out_features, in_features)
        scale: # (num_experts, out_features)
        dtype: Of the result.
    """
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    constants = {"WIDTH": codes.shape[-1], "STEP": INT8_STEP, "COLUMNS": 1024}
    Launcher("dequantize_int8", (scale.numel(), 1, 1), constants)(codes, scale, out)
    return out
