"""Stand-ins for flash-attn's kernels, which take the memory that its source asks for.

The sources are flash-attn 2.8 (`mha_fwd`, `mha_varlen_fwd`, `set_params_splitkv` and
`num_splits_heuristic` in csrc/flash_attn/flash_api.cpp) and its version for Hopper
(hopper/flash_api.cpp, with one split, the default of its Python functions). transformers' own code
runs around them: masks, unpadding, and padding of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, modeling_flash_attention_utils, modeling_utils

from moetool.simulation.meta.replaced import replaced

# Of an H100 and an H200. Each runs two blocks at once.
_NUM_PROCESSORS = 132
_QUERIES_PER_BLOCK = 64
_MOST_SPLITS = 128
_RNG_STATE_BYTES = 16
_SEMAPHORE_BYTES = 4


@contextmanager
def standing_in_for_flash(implementation: str) -> Iterator[None]:
    """Let transformers use stand-ins for flash-attn's functions; does nothing for other attention.

    Args:
        implementation: transformers' name of the attention.
    """
    if not is_flash(implementation):
        yield
        return
    attend, attend_varlen = _KERNELS[implementation]
    module: Any = modeling_flash_attention_utils
    functions = {
        "_flash_fn": attend,
        "_flash_varlen_fn": attend_varlen,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": module._pad_input,
        "_unpad_fn": module._unpad_input,
        "_process_flash_kwargs_fn": module._lazy_define_process_function(attend_varlen),
        "_loaded_implementation": implementation,
    }
    with replaced(module, functions):
        yield


def is_flash(implementation: str | None) -> bool:
    """Return whether an attention implementation is one of flash-attn's."""
    return implementation in _KERNELS


def set_flash(model: PreTrainedModel, implementation: str) -> None:
    """Have a model use flash attention, whether or not flash-attn is installed.

    Raises:
        ValueError: transformers refuses it for this model.
    """
    compatible = getattr(model, "_compatible_flash_implementations", None)
    if compatible is not None and implementation not in compatible:
        raise ValueError(f"it takes only {compatible[0]}")
    version = int(implementation[-1])
    matrix: Any = vars(modeling_utils)["FLASH_ATTENTION_COMPATIBILITY_MATRIX"]
    entry = {**matrix[version], "general_availability_check": lambda *_, **__: True}
    set_attention: Any = model.set_attn_implementation
    changed = {"_flash_attn_import_error": lambda *_, **__: None}
    with standing_in_for_flash(implementation), replaced(modeling_utils.PreTrainedModel, changed):
        before, matrix[version] = matrix[version], entry
        try:
            set_attention(implementation)
        finally:
            matrix[version] = before
    config: Any = model.config.get_text_config()
    if config._attn_implementation != implementation:
        raise ValueError("its attention can't be exchanged")


def count_splits(
    *, batch_size: int, num_heads: int, num_queries: int, num_keys: int, width: int
) -> int:
    """Return the parts into which flash-attn 2 splits keys to keep a GPU busy with few queries.

    Args:
        batch_size: Sequences.
        num_heads: Heads that run separately.
        num_queries: Queries of each head.
        num_keys: Keys of each head.
        width: Numbers in a key.
    """
    keys_per_block = 256 if width <= 64 else 128 if width <= 128 else 64
    num_key_blocks = math.ceil(num_keys / keys_per_block)
    num_blocks = batch_size * num_heads * math.ceil(num_queries / _QUERIES_PER_BLOCK)
    num_places = 2 * _NUM_PROCESSORS
    if num_blocks >= 0.8 * num_places:
        return 1
    most = min(_MOST_SPLITS, num_places, num_key_blocks)
    # Two numbers of splits that give parts of the same length differ only in empty parts.
    eligible = [
        number
        for number in range(1, most + 1)
        if number == 1
        or math.ceil(num_key_blocks / number) != math.ceil(num_key_blocks / (number - 1))
    ]
    busy = {}
    for number in eligible:
        waves = num_blocks * number / num_places
        busy[number] = waves / math.ceil(waves)
    best = max(busy.values(), default=1)
    return next((number for number in eligible if busy[number] >= 0.85 * best), 1)


def _attend_2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Return a tensor of the shape of attention's output, as `flash_attn_func` makes it.

    (batch, num_queries, num_heads, width) -> (batch, num_queries, num_heads, width)
    """
    del value, dropout_p, softmax_scale, causal, softcap, deterministic
    batch_size, num_queries, num_heads, width = query.shape
    num_keys, num_key_heads = key.shape[1], key.shape[2]
    out = torch.empty_like(query)
    kept = [_make_floats(query, batch_size * num_heads * num_queries)]
    if num_queries == 1 and num_heads > num_key_heads and window_size == (-1, -1):
        num_queries, num_heads = num_heads // num_key_heads, num_key_heads
    kept += _make_split(query, batch_size, num_heads, num_queries, num_keys, width)
    kept.append(query.new_empty(_RNG_STATE_BYTES, dtype=torch.uint8))
    return out


def _attend_varlen_2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Return a tensor of the shape of attention's output, as `flash_attn_varlen_func` makes it.

    (num_queries, num_heads, width) -> (num_queries, num_heads, width)
    """
    del value, cu_seqlens_k, dropout_p, softmax_scale, causal, softcap, deterministic
    num_heads, width, num_key_heads = query.shape[1], query.shape[2], key.shape[1]
    batch_size, num_groups = cu_seqlens_q.shape[0] - 1, num_heads // num_key_heads
    is_swapped = max_seqlen_q == 1 and num_groups > 1 and window_size == (-1, -1)
    if is_swapped:
        grouped = query.reshape(batch_size, num_key_heads, num_groups, width).transpose(1, 2)
        query = grouped.reshape(batch_size * num_groups, num_key_heads, width)
    out = torch.empty_like(query)
    kept = [_make_floats(query, query.shape[0] * query.shape[1])]
    if not is_swapped:
        kept.append(query.new_empty(_RNG_STATE_BYTES, dtype=torch.uint8))
        return out
    kept += _make_split(query, batch_size, num_key_heads, num_groups, max_seqlen_k, width)
    kept.append(query.new_empty(_RNG_STATE_BYTES, dtype=torch.uint8))
    return (
        out.reshape(batch_size, num_groups, num_key_heads, width)
        .transpose(1, 2)
        .reshape(batch_size, num_heads, width)
    )


def _attend_3(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Return a tensor of the shape of attention's output, as the version for Hopper makes it."""
    del key, value, softmax_scale, causal, window_size, softcap, deterministic
    out = torch.empty_like(query)
    kept = _make_floats(query, query.numel() // query.shape[-1])
    query.new_empty(_SEMAPHORE_BYTES, dtype=torch.uint8)
    del kept
    return out


def _attend_varlen_3(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """Return a tensor of the shape of attention's output for sequences one after another."""
    del cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    return _attend_3(query, key, value, softmax_scale, causal, window_size, softcap, deterministic)


def _make_split(
    query: torch.Tensor,
    batch_size: int,
    num_heads: int,
    num_queries: int,
    num_keys: int,
    width: int,
) -> list[torch.Tensor]:
    """Return the sums and the outputs of each part of the keys; empty if they aren't split."""
    num_splits = count_splits(
        batch_size=batch_size,
        num_heads=num_heads,
        num_queries=num_queries,
        num_keys=num_keys,
        width=width,
    )
    if num_splits == 1:
        return []
    step = 32 if width <= 128 else 64
    rows = num_splits * batch_size * num_heads * num_queries
    return [_make_floats(query, rows), _make_floats(query, rows * -(-width // step) * step)]


def _make_floats(query: torch.Tensor, number: int) -> torch.Tensor:
    return query.new_empty(number, dtype=torch.float32)


_KERNELS: dict[str | None, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "flash_attention_2": (_attend_2, _attend_varlen_2),
    "flash_attention_3": (_attend_3, _attend_varlen_3),
}
