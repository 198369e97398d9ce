"""Rules of SGLang 0.5, read in its source; nothing here confirms them.

`profile_max_num_token` and `get_cell_size_per_token` (sglang/srt/model_executor/
model_runner_kv_cache_mixin.py): memory that is free before loading, times `--mem-fraction-static`,
holds weights and pool. Activations and CUDA graphs are in the rest. Sliding-window layers have a pool
with `--swa-full-tokens-ratio` as many tokens (`_resolve_hybrid_swa_tokens`).
"""

from __future__ import annotations

from moetool.memory.serving.answer import Capacity
from moetool.memory.serving.geometry import CacheGeometry

SOURCES = (
    "sglang/srt/model_executor/model_runner_kv_cache_mixin.py: profile_max_num_token, "
    "get_cell_size_per_token, _resolve_hybrid_swa_tokens",
)
SWA_RATIO = 0.8


def count_capacity(
    geometry: CacheGeometry, pool_bytes: int, *, token_bytes_per_layer: int, length: int
) -> Capacity:
    """Return what a pool holds; the arguments are those of vLLM's."""
    if not geometry.num_sliding or geometry.window is None:
        num_tokens = pool_bytes // (token_bytes_per_layer * geometry.num_layers)
        return Capacity(pool_bytes, num_tokens, num_tokens // length)
    # Both pools together take the memory, and their tokens have a fixed ratio.
    if not geometry.num_full:
        num_tokens = in_window = pool_bytes // (token_bytes_per_layer * geometry.num_sliding)
        return Capacity(pool_bytes, num_tokens, in_window // min(length, geometry.window))
    layers = geometry.num_full + SWA_RATIO * geometry.num_sliding
    num_tokens = int(pool_bytes / (token_bytes_per_layer * layers))
    in_window = int(num_tokens * SWA_RATIO)
    num_sequences = min(num_tokens // length, in_window // min(length, geometry.window))
    return Capacity(pool_bytes, num_tokens, num_sequences)
