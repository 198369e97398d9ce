"""Programs in Triton's language: packed matrices times one row each, and dequantization.

Pointers come before constants. Those to scales of scales and to tables aren't read where a format has
none.
"""

from __future__ import annotations

import triton
from triton import language as tl

from moetool.quantizing.kernels.tiles import multiply_tile


@triton.jit
def multiply_each(
    rows_ptr,
    codes_ptr,
    scales_ptr,
    nested_ptr,
    offset_ptr,
    nested_table_ptr,
    table_ptr,
    ids_ptr,
    bias_ptr,
    out_ptr,
    NUM_EXPERTS: tl.constexpr,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_4BIT: tl.constexpr,
    IS_NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STEP: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Multiply the matrix of one assignment's expert by its row.

    Each program makes `TILE` outputs of one assignment.

    Args:
        ids_ptr: Experts; those beyond the matrices give zeros.
        OUT: Outputs of a matrix.
        WIDTH: Inputs of a matrix.
        TOP_K: Assignments of each row of `rows_ptr`.
        STEP: The scale of a step of 8 bits, as a share of its row's.
        SPAN: Bytes of a row of a matrix that are read at a time.
    """
    assignment = tl.program_id(1).to(tl.int64)
    expert = tl.load(ids_ptr + assignment).to(tl.int64)
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_out = (out < OUT) & (expert < NUM_EXPERTS)
    product = multiply_tile(
        rows_ptr + assignment // TOP_K * WIDTH,
        codes_ptr,
        scales_ptr,
        nested_ptr,
        offset_ptr,
        nested_table_ptr,
        table_ptr,
        bias_ptr,
        tl.minimum(expert, NUM_EXPERTS - 1),
        out,
        is_out,
        OUT,
        WIDTH,
        IS_4BIT,
        IS_NESTED,
        HAS_BIAS,
        STEP,
        TILE,
        SPAN,
    )
    target = out_ptr + assignment * OUT + out
    tl.store(target, product.to(out_ptr.dtype.element_ty), mask=out < OUT)


@triton.jit
def multiply_gated(
    rows_ptr,
    codes_ptr,
    scales_ptr,
    nested_ptr,
    offset_ptr,
    nested_table_ptr,
    table_ptr,
    ids_ptr,
    bias_ptr,
    out_ptr,
    NUM_EXPERTS: tl.constexpr,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_4BIT: tl.constexpr,
    IS_NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STEP: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Multiply the matrix of one assignment's expert by its row, and gate one half with the other.

    Each program makes `TILE` products, of which half are gates: `TILE` / 2 outputs.

    Args:
        OUT: Products: twice the outputs.
        IS_INTERLEAVED: Whether gates and the values that they open take turns.
        LIMIT: Gates are at most this, and values at most this far from 0; 0 for no limit.
        ALPHA: A gate is multiplied by the sigmoid of this many times itself.
        SHIFT: Is added to a value before the gate opens it.
    """
    INNER: tl.constexpr = OUT // 2
    HALF: tl.constexpr = TILE // 2
    assignment = tl.program_id(1).to(tl.int64)
    expert = tl.load(ids_ptr + assignment).to(tl.int64)
    # Each output's gate is followed by its value.
    turn = tl.arange(0, TILE)
    inner = tl.program_id(0) * HALF + turn // 2
    product_row = 2 * inner + turn % 2 if IS_INTERLEAVED else inner + turn % 2 * INNER
    is_out = (inner < INNER) & (expert < NUM_EXPERTS)
    product = multiply_tile(
        rows_ptr + assignment // TOP_K * WIDTH,
        codes_ptr,
        scales_ptr,
        nested_ptr,
        offset_ptr,
        nested_table_ptr,
        table_ptr,
        bias_ptr,
        tl.minimum(expert, NUM_EXPERTS - 1),
        product_row,
        is_out,
        OUT,
        WIDTH,
        IS_4BIT,
        IS_NESTED,
        HAS_BIAS,
        STEP,
        TILE,
        SPAN,
    )
    gate, value = tl.split(tl.reshape(product, (HALF, 2)))
    if LIMIT > 0:
        gate = tl.minimum(gate, LIMIT)
        value = tl.maximum(tl.minimum(value, LIMIT), -LIMIT)
    gated = gate * tl.sigmoid(ALPHA * gate) * (value + SHIFT)
    out = tl.program_id(0) * HALF + tl.arange(0, HALF)
    target = out_ptr + assignment * INNER + out
    tl.store(target, gated.to(out_ptr.dtype.element_ty), mask=out < INNER)


@triton.jit
def multiply_and_add_up(
    rows_ptr,
    codes_ptr,
    scales_ptr,
    nested_ptr,
    offset_ptr,
    nested_table_ptr,
    table_ptr,
    ids_ptr,
    bias_ptr,
    weights_ptr,
    out_ptr,
    NUM_EXPERTS: tl.constexpr,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_4BIT: tl.constexpr,
    IS_NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STEP: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Add up the products of one token's experts by their weights.

    Each program makes `TILE` outputs of one token.

    Args:
        rows_ptr: One row for each assignment.
        weights_ptr: One for each assignment.
        TOP_K: Assignments of each token.
    """
    token = tl.program_id(1).to(tl.int64)
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE,), dtype=tl.float32)
    for rank in range(TOP_K):
        assignment = token * TOP_K + rank
        expert = tl.load(ids_ptr + assignment).to(tl.int64)
        product = multiply_tile(
            rows_ptr + assignment * WIDTH,
            codes_ptr,
            scales_ptr,
            nested_ptr,
            offset_ptr,
            nested_table_ptr,
            table_ptr,
            bias_ptr,
            tl.minimum(expert, NUM_EXPERTS - 1),
            out,
            (out < OUT) & (expert < NUM_EXPERTS),
            OUT,
            WIDTH,
            IS_4BIT,
            IS_NESTED,
            HAS_BIAS,
            STEP,
            TILE,
            SPAN,
        )
        total += product * tl.load(weights_ptr + assignment).to(tl.float32)
    target = out_ptr + token * OUT + out
    tl.store(target, total.to(out_ptr.dtype.element_ty), mask=out < OUT)


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
