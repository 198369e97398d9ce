"""Attention as llama.cpp's graphs compute it (`build_attn` and what it calls, src/llama-graph.cpp).

Keys and values are written to the cache, and read from it as views that show all its cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.sizes import RunSizes
from moetool.memory.serving.ggml.tensors import (
    KIND_BYTES,
    Tensor,
    apply,
    compute,
    copy_packed,
    make_cache,
    make_leaf,
    multiply,
    permute,
    reshape,
    set_rows,
    view,
)

# Rotations of quantized caches are matrices of 64 rows, or of more that divide a head.
_LEAST_ROTATION = 64


@dataclass(frozen=True)
class CacheInputs:
    """Inputs that tell where tokens are in one cache.

    Attributes:
        num_cells: Cells of each sequence.
        key_rows: The cells that new keys go to.
        value_rows: The same for values; None if the cache has keys only.
        mask: Which cells each token sees.
        key_rotation: The matrix that rotates keys and queries; None if there is none.
        value_rotation: The same for values.
    """

    num_cells: int
    key_rows: Tensor
    value_rows: Tensor | None
    mask: Tensor
    key_rotation: Tensor | None
    value_rotation: Tensor | None


def make_cache_inputs(
    run: RunSizes, *, num_cells: int, head_dim: int, num_kv_heads: int, is_latent: bool
) -> CacheInputs:
    """Return the inputs of a cache (`build_attn_inp_kv`; with latent attention `build_attn_inp_k`)."""
    is_flash, num_tokens = run.has_flash_attention, run.num_tokens
    # Without flash attention values lie transposed, and each number has a row.
    num_value_rows = num_tokens * (1 if is_flash else num_kv_heads * head_dim)
    mask_kind = "f16" if is_flash else "f32"
    per_stream = num_tokens // run.num_streams
    can_rotate = not is_latent and head_dim % _LEAST_ROTATION == 0
    size = _LEAST_ROTATION
    while can_rotate and run.has_quantized_cache and head_dim % (size * 2) == 0:
        size *= 2
    are_values = run.has_quantized_values
    are_values = run.has_quantized_cache if are_values is None else are_values
    rotations = [
        make_leaf("f32", rows, rows, is_input=True) if can_rotate and is_quantized else None
        for rows, is_quantized in ((size, run.has_quantized_cache), (_LEAST_ROTATION, are_values))
    ]
    return CacheInputs(
        num_cells,
        make_leaf("i64", num_tokens, is_input=True),
        None if is_latent else make_leaf("i64", num_value_rows, is_input=True),
        make_leaf(mask_kind, num_cells, per_stream, 1, run.num_streams, is_input=True),
        rotations[0],
        rotations[1],
    )


def attend(
    graph: Graph,
    run: RunSizes,
    inputs: CacheInputs,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    layer: int,
    expansion: Tensor | None = None,
    sinks: Tensor | None = None,
    has_windows: bool = False,
) -> Tensor:
    """Return what attention reads for each token, with all heads in the first dimension.

    Args:
        graph: The graph so far.
        run: The sizes of the micro-batch.
        inputs: The inputs of the layer's cache.
        queries: Numbers of a head, heads, tokens.
        keys: The same for key heads.
        values: The same; with latent attention the latent, which the cache holds with its keys.
        layer: The layer, whose cache is read.
        expansion: The matrices that expand what is read from latents.
        sinks: One number for each head.
        has_windows: Whether the model has a second cache, whose layers compute keys before values.
    """
    if inputs.key_rotation is not None:
        queries, keys = (_rotate(each, inputs.key_rotation) for each in (queries, keys))
    if inputs.value_rotation is not None:
        values = _rotate(values, inputs.value_rotation)
    for each in (queries, keys, values) if has_windows else (queries, values, keys):
        graph.expand(each)
    streams, cells = run.num_streams, inputs.num_cells
    head_dim, num_kv_heads, num_tokens, _ = keys.shape
    rows = make_cache(layer, "k", head_dim * num_kv_heads, cells, streams)
    merged = view(keys, (head_dim * num_kv_heads, num_tokens), keys.strides[2:3])
    graph.expand(set_rows(_merge_streams(rows), merged, inputs.key_rows))
    cached_keys = _view_heads(rows, head_dim)
    if inputs.value_rows is None:
        cached_values = view(
            cached_keys, (values.shape[0], *cached_keys.shape[1:]), cached_keys.strides[1:]
        )
        is_transposed = False
    else:
        cached_values = _store_values(
            graph, run, inputs.value_rows, values, num_cells=cells, layer=layer
        )
        is_transposed = not run.has_flash_attention
    read = _read(
        graph,
        run,
        inputs.mask,
        queries,
        cached_keys,
        cached_values,
        is_transposed=is_transposed,
        expansion=expansion,
        sinks=sinks,
    )
    return read if inputs.value_rotation is None else _rotate(read, inputs.value_rotation)


def _store_values(
    graph: Graph,
    run: RunSizes,
    value_rows: Tensor,
    values: Tensor,
    *,
    num_cells: int,
    layer: int,
) -> Tensor:
    """Write values to the cache, and return the view of all of its cells."""
    head_dim, num_heads, num_tokens, _ = values.shape
    width, streams = head_dim * num_heads, run.num_streams
    rows = make_cache(layer, "v", width, num_cells, streams)
    if run.has_flash_attention:
        merged = view(values, (width, num_tokens), values.strides[2:3])
        graph.expand(set_rows(_merge_streams(rows), merged, value_rows))
        return _view_heads(rows, head_dim)
    is_packed = values.strides[2] == width * KIND_BYTES[values.kind]
    merged = (reshape if is_packed else copy_packed)(values, width, num_tokens)
    columns = reshape(rows, 1, rows.num_values)
    single = reshape(merged, 1, merged.num_values)
    graph.expand(set_rows(columns, single, value_rows))
    size = KIND_BYTES[rows.kind]
    strides = (num_cells * head_dim * size, num_cells * size, rows.strides[2])
    return view(rows, (num_cells, num_heads, head_dim, streams), strides)


def _view_heads(rows: Tensor, head_dim: int) -> Tensor:
    """Return a view of rows of a cache, by head."""
    width, cells, streams, _ = rows.shape
    strides = (head_dim * KIND_BYTES[rows.kind], *rows.strides[1:3])
    return view(rows, (head_dim, width // head_dim, cells, streams), strides)


def _read(
    graph: Graph,
    run: RunSizes,
    mask: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    is_transposed: bool,
    expansion: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return `build_attn_mha`."""
    num_dims, num_heads, num_tokens, _ = queries.shape
    streams = run.num_streams
    by_stream = (num_dims, num_heads, num_tokens // streams, streams)
    strides = (*queries.strides[1:3], queries.strides[2] * (num_tokens // streams))
    queries = view(queries, by_stream, strides)
    queries, keys, values = (permute(each, 0, 2, 1, 3) for each in (queries, keys, values))
    extra = () if sinks is None else (sinks,)
    if run.has_flash_attention:
        shape = (values.shape[0], queries.shape[2], queries.shape[1], queries.shape[3])
        read = compute("flash_attn", "f32", shape, queries, keys, values, mask, *extra)
        if expansion is not None:
            expanded = multiply(expansion, permute(read, 0, 2, 1, 3))
            read = copy_packed(permute(expanded, 0, 2, 1, 3))
        first, second, third, fourth = read.shape
        return graph.expand(reshape(read, first * second, third * fourth))
    scores = multiply(keys, queries)
    shares = apply("soft_max", scores, mask, *extra)
    if not is_transposed:
        # A cache that isn't quantized is f16, and so is the copy.
        turned = permute(values, 1, 0, 2, 3)
        values = compute("cont", "f16", turned.shape, turned)
    read = multiply(values, shares)
    if expansion is not None:
        read = multiply(expansion, read)
    read = permute(read, 0, 2, 1, 3)
    first, second, third, fourth = read.shape
    return graph.expand(copy_packed(read, first * second, third * fourth))


def _merge_streams(rows: Tensor) -> Tensor:
    width, cells, streams, _ = rows.shape
    return rows if streams == 1 else reshape(rows, width, cells * streams)


def _rotate(values: Tensor, rotation: Tensor) -> Tensor:
    size = rotation.shape[0]
    shape = (size, values.num_values // size)
    rows = reshape(values, *shape) if values.is_contiguous else copy_packed(values, *shape)
    return reshape(multiply(rotation, rows), *values.shape)
