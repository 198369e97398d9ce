"""Rules of SGLang 0.5, read in its source; nothing here confirms them.

`profile_max_num_token` and `get_cell_size_per_token` (sglang/srt/model_executor/
model_runner_kv_cache_mixin.py): memory that is free before loading, times `--mem-fraction-static`,
holds weights and pool. Activations and CUDA graphs are in the rest. Sliding-window layers have a pool
with `--swa-full-tokens-ratio` as many tokens (`_resolve_hybrid_swa_tokens`). Replicas are whole
(`compute_world_size`, server_args.py), and `FusedMoE` (layers/moe/fused_moe_triton/layer.py) shares
experts between GPUs that share a layer.
"""

from __future__ import annotations

from moetool.memory.serving import pools
from moetool.memory.serving.answer import Capacity, ServedCache
from moetool.memory.serving.geometry import CacheGeometry
from moetool.memory.serving.question import Parts, Question

SOURCES = (
    "sglang/srt/model_executor/model_runner_kv_cache_mixin.py: profile_max_num_token, "
    "get_cell_size_per_token, _resolve_hybrid_swa_tokens",
    "sglang/srt/server_args.py: compute_world_size",
    "sglang/srt/layers/moe/fused_moe_triton/layer.py: FusedMoE",
    "sglang/srt/layers/quantization: fp8.py, mxfp4.py",
)
SWA_RATIO = 0.8


def list_parts(question: Question) -> Parts:
    """Return the sizes that the rules give."""
    return pools.list_pool_parts(question, count_capacity)


def write_flags(question: Question, num_sequences: int | None) -> str:
    """Return the flags that the figures are for."""
    options, deployment = question.options, question.deployment
    return pools.write_flags(
        {
            "--mem-fraction-static": f"{options.share:g}",
            "--context-length": question.length,
            "--kv-cache-dtype": None if options.kv_cache_dtype is ServedCache.AUTO else "fp8_e4m3",
            "--max-running-requests": num_sequences,
            "--tp-size": deployment.tensor,
            "--dp-size": deployment.replicas if deployment.replicas > 1 else None,
            "--ep-size": deployment.expert_groups if deployment.shares_experts else None,
            "--nnodes": deployment.num_nodes if deployment.num_nodes > 1 else None,
        }
    )


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
