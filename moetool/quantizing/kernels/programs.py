"""Programs in Triton's language: packed matrices times one row each, and dequantization."""

from __future__ import annotations

import triton
from triton import language as tl


@triton.jit
def multiply_4bit(
    rows_ptr,
    codes_ptr,
    absmax_ptr,
    nested_ptr,
    offset_ptr,
    nested_table_ptr,
    table_ptr,
    ids_ptr,
    bias_ptr,
    out_ptr,
    num_rows_out,
    num_blocks,
    num_nested,
    top_k,
    BYTES: tl.constexpr,
    IS_PAIRED: tl.constexpr,
    IS_NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Multiply the matrix of one assignment's expert, in 4 bits, by its row.

    Each program makes `TILE` outputs of one assignment. A block of 64 weights is 32 bytes, and no
    block spans two rows of a matrix.

    Args:
        rows_ptr: For each token its inputs with even places, then those with odd ones; or pairs of
            bfloat16 as integers.
        num_rows_out: Outputs of a matrix.
        num_blocks: Blocks of a whole matrix.
        num_nested: Blocks of its scales.
        top_k: Assignments of each row of `rows_ptr`.
        BYTES: Bytes of each row of a matrix.
    """
    assignment = tl.program_id(1)
    expert = tl.load(ids_ptr + assignment).to(tl.int64)
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_out = out < num_rows_out
    blocks_per_row: tl.constexpr = BYTES // 32
    codes_ptr += expert * num_rows_out * BYTES
    absmax_ptr += expert * num_blocks
    rows_ptr += (assignment // top_k).to(tl.int64) * (BYTES if IS_PAIRED else 2 * BYTES)
    within = tl.arange(0, 32)
    if IS_NESTED:
        nested_ptr += expert * num_nested
        offset = tl.load(offset_ptr + expert)
    total = tl.zeros((TILE, BLOCKS, 32), dtype=tl.float32)
    for first in range(0, blocks_per_row, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        is_block = block < blocks_per_row
        place = block[:, None] * 32 + within[None, :]
        if IS_PAIRED:
            # A bfloat16 is the upper half of a float32.
            pair = tl.load(rows_ptr + place, mask=is_block[:, None], other=0)
            even = (pair << 16).to(tl.float32, bitcast=True)
            odd = (pair & -65536).to(tl.float32, bitcast=True)
        else:
            even = tl.load(rows_ptr + place, mask=is_block[:, None], other=0.0).to(tl.float32)
            odd = tl.load(rows_ptr + BYTES + place, mask=is_block[:, None], other=0.0).to(
                tl.float32
            )
        is_there = is_out[:, None] & is_block[None, :]
        scale_place = out[:, None] * blocks_per_row + block[None, :]
        scale = tl.load(absmax_ptr + scale_place, mask=is_there, other=0)
        if IS_NESTED:
            scale = tl.load(nested_table_ptr + scale.to(tl.int32))
            scale = scale * tl.load(nested_ptr + scale_place // 256, mask=is_there, other=0.0)
            scale += offset
        packed = tl.load(
            codes_ptr + out[:, None, None] * BYTES + place[None, :, :],
            mask=is_there[:, :, None],
            other=0,
        ).to(tl.int32)
        high = tl.load(table_ptr + (packed >> 4))
        low = tl.load(table_ptr + (packed & 15))
        total += (high * even[None, :, :] + low * odd[None, :, :]) * scale[:, :, None]
    product = tl.sum(tl.sum(total, 2), 1)
    if HAS_BIAS:
        product += tl.load(bias_ptr + expert * num_rows_out + out, mask=is_out, other=0.0).to(
            tl.float32
        )
    target = out_ptr + assignment.to(tl.int64) * num_rows_out + out
    tl.store(target, product.to(out_ptr.dtype.element_ty), mask=is_out)


@triton.jit
def multiply_int8(
    rows_ptr,
    codes_ptr,
    scale_ptr,
    ids_ptr,
    bias_ptr,
    out_ptr,
    num_rows_out,
    top_k,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Multiply the matrix of one assignment's expert, in 8 bits, by its row.

    Args:
        num_rows_out: Outputs of a matrix.
        top_k: Assignments of each row of `rows_ptr`.
        WIDTH: Inputs of a matrix.
    """
    assignment = tl.program_id(1)
    expert = tl.load(ids_ptr + assignment).to(tl.int64)
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_out = out < num_rows_out
    codes_ptr += expert * num_rows_out * WIDTH
    rows_ptr += (assignment // top_k).to(tl.int64) * WIDTH
    total = tl.zeros((TILE, COLUMNS), dtype=tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < WIDTH
        row = tl.load(rows_ptr + column, mask=is_column, other=0.0).to(tl.float32)
        codes = tl.load(
            codes_ptr + out[:, None] * WIDTH + column[None, :],
            mask=is_out[:, None] & is_column[None, :],
            other=0,
        )
        total += codes.to(tl.float32) * row[None, :]
    scale = tl.load(scale_ptr + expert * num_rows_out + out, mask=is_out, other=0.0)
    product = tl.sum(total, 1) * scale * STEP
    if HAS_BIAS:
        product += tl.load(bias_ptr + expert * num_rows_out + out, mask=is_out, other=0.0).to(
            tl.float32
        )
    target = out_ptr + assignment.to(tl.int64) * num_rows_out + out
    tl.store(target, product.to(out_ptr.dtype.element_ty), mask=is_out)


@triton.jit
def add_up(
    outputs_ptr,
    places_ptr,
    weights_ptr,
    total_ptr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add up one token's outputs by their weights.

    Args:
        places_ptr: The row of `outputs_ptr` for each assignment.
        WIDTH: Columns of a row.
        TOP_K: Assignments of a token.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < WIDTH
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for rank in range(TOP_K):
        place = tl.load(places_ptr + token * TOP_K + rank)
        weight = tl.load(weights_ptr + token * TOP_K + rank).to(tl.float32)
        row = tl.load(outputs_ptr + place * WIDTH + column, mask=is_column, other=0.0)
        total += weight * row.to(tl.float32)
    target = total_ptr + token * WIDTH + column
    tl.store(target, total.to(total_ptr.dtype.element_ty), mask=is_column)


@triton.jit
def dequantize_int8(
    codes_ptr,
    scale_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Dequantize one row of a stack of matrices in 8 bits."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr + row)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < WIDTH
        codes = tl.load(codes_ptr + row * WIDTH + column, mask=is_column, other=0)
        weights = codes.to(tl.float32) * scale * STEP
        target = out_ptr + row * WIDTH + column
        tl.store(target, weights.to(out_ptr.dtype.element_ty), mask=is_column)
