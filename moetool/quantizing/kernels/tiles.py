"""Parts of the programs in Triton's language: some outputs of one expert's matrix times a row."""

from __future__ import annotations

import triton
from triton import language as tl


@triton.jit
def multiply_tile(
    row_ptr,
    codes_ptr,
    scales_ptr,
    nested_ptr,
    offset_ptr,
    nested_table_ptr,
    table_ptr,
    bias_ptr,
    expert,
    out,
    is_out,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_4BIT: tl.constexpr,
    IS_NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STEP: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Return some outputs of one expert's matrix times a row, plus its bias, in float32.

    The row of a matrix in 4 bits is made of whole blocks of 64 weights, which are 32 bytes.

    Args:
        out: Which outputs.
        is_out: Those that are computed; others are 0.
    """
    if IS_4BIT:
        product = _multiply_4bit(
            row_ptr,
            codes_ptr,
            scales_ptr,
            nested_ptr,
            offset_ptr,
            nested_table_ptr,
            table_ptr,
            expert,
            out,
            is_out,
            OUT,
            WIDTH,
            IS_NESTED,
            TILE,
            SPAN,
        )
    else:
        product = _multiply_int8(
            row_ptr, codes_ptr, scales_ptr, expert, out, is_out, OUT, WIDTH, STEP, TILE, SPAN
        )
    if HAS_BIAS:
        product += tl.load(bias_ptr + expert * OUT + out, mask=is_out, other=0.0).to(tl.float32)
    return product


@triton.jit
def _multiply_4bit(
    row_ptr,
    codes_ptr,
    scales_ptr,
    nested_ptr,
    offset_ptr,
    nested_table_ptr,
    table_ptr,
    expert,
    out,
    is_out,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_NESTED: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
):
    BYTES: tl.constexpr = WIDTH // 2
    ROW_BLOCKS: tl.constexpr = WIDTH // 64
    BLOCKS: tl.constexpr = SPAN // 32
    NUM_BLOCKS: tl.constexpr = OUT * ROW_BLOCKS
    NUM_NESTED: tl.constexpr = (NUM_BLOCKS + 255) // 256
    codes_ptr += expert * (OUT * BYTES)
    scales_ptr += expert * NUM_BLOCKS
    if IS_NESTED:
        nested_ptr += expert * NUM_NESTED
        offset = tl.load(offset_ptr + expert)
    within = tl.arange(0, 32)
    total = tl.zeros((TILE, BLOCKS, 32), dtype=tl.float32)
    for first in range(0, ROW_BLOCKS, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        is_block = block < ROW_BLOCKS
        place = block[:, None] * 32 + within[None, :]
        if row_ptr.dtype.element_ty == tl.bfloat16:
            # Read in whole words: a bfloat16 is the upper half of a float32.
            pairs_ptr = row_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
            pair = tl.load(pairs_ptr + place, mask=is_block[:, None], other=0)
            even = (pair << 16).to(tl.float32, bitcast=True)
            odd = (pair & -65536).to(tl.float32, bitcast=True)
        else:
            there = is_block[:, None]
            even = tl.load(row_ptr + 2 * place, mask=there, other=0.0).to(tl.float32)
            odd = tl.load(row_ptr + 2 * place + 1, mask=there, other=0.0).to(tl.float32)
        is_there = is_out[:, None] & is_block[None, :]
        scale_place = out[:, None] * ROW_BLOCKS + block[None, :]
        scale = tl.load(scales_ptr + scale_place, mask=is_there, other=0)
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
    # Where nothing is there, codes and scales of scales stand for numbers other than 0.
    return tl.where(is_out, tl.sum(tl.sum(total, 2), 1), 0.0)


@triton.jit
def _multiply_int8(
    row_ptr,
    codes_ptr,
    scales_ptr,
    expert,
    out,
    is_out,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
):
    codes_ptr += expert * (OUT * WIDTH)
    total = tl.zeros((TILE, SPAN), dtype=tl.float32)
    for first in range(0, WIDTH, SPAN):
        column = first + tl.arange(0, SPAN)
        is_column = column < WIDTH
        row = tl.load(row_ptr + column, mask=is_column, other=0.0).to(tl.float32)
        codes = tl.load(
            codes_ptr + out[:, None] * WIDTH + column[None, :],
            mask=is_out[:, None] & is_column[None, :],
            other=0,
        )
        total += codes.to(tl.float32) * row[None, :]
    scale = tl.load(scales_ptr + expert * OUT + out, mask=is_out, other=0.0)
    return tl.sum(total, 1) * scale * STEP
