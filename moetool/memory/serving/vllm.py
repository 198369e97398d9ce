"""Rules of vLLM 0.11 and later (V1), read in its source; nothing here confirms them.

- `Worker.determine_available_memory` (vllm/v1/worker/gpu_worker.py): the pool is the GPU's memory
  times the utilization, minus weights, the peak of a profiling run, and what is not torch's.
- `AttentionSpec` and `MLAAttentionSpec.page_size_bytes` (vllm/v1/kv_cache_interface.py): a block
  of one layer; latent attention stores kv_lora_rank + qk_rope_head_dim numbers of a token once.
- `get_kv_cache_groups`, `get_max_concurrency_for_kv_cache_config` (vllm/v1/core/kv_cache_utils.py):
  layers of different kinds share a pool of blocks, each of which spans the layers of one group.
- `FusedMoEParallelConfig.make` (vllm/model_executor/layers/fused_moe/config.py): experts are cut or
  shared between all GPUs, those of other replicas too.
"""

from __future__ import annotations

from moetool.memory.serving import pools
from moetool.memory.serving.answer import Capacity, ServedCache
from moetool.memory.serving.geometry import CacheGeometry
from moetool.memory.serving.question import Parts, Question

SOURCES = (
    "vllm/v1/worker/gpu_worker.py: determine_available_memory",
    "vllm/v1/kv_cache_interface.py: page_size_bytes, max_memory_usage_bytes",
    "vllm/v1/core/kv_cache_utils.py: get_max_concurrency_for_kv_cache_config",
    "vllm/model_executor/layers/fused_moe/config.py: FusedMoEParallelConfig.make",
    "vllm/model_executor/layers/quantization: fp8.py, mxfp4.py",
)
BLOCK_TOKENS = 16
# Tokens of a step, which sliding layers keep next to their window.
BATCHED_TOKENS = 8192
# One block is the null block, which holds nothing.
_NULL_BLOCKS = 1
# Groups may be padded by a quarter before they are split.
_MOST_PADDING = 1.25


def list_parts(question: Question) -> Parts:
    """Return the sizes that the rules give."""
    return pools.list_pool_parts(question, count_capacity)


def write_flags(question: Question, num_sequences: int | None) -> str:
    """Return the flags that the figures are for."""
    options, deployment = question.options, question.deployment
    return pools.write_flags(
        {
            "--gpu-memory-utilization": f"{options.share:g}",
            "--max-model-len": question.length,
            "--max-num-batched-tokens": BATCHED_TOKENS,
            "--kv-cache-dtype": None if options.kv_cache_dtype is ServedCache.AUTO else "fp8",
            "--max-num-seqs": num_sequences,
            "--tensor-parallel-size": deployment.tensor,
            "--data-parallel-size": deployment.replicas if deployment.replicas > 1 else None,
            "--enable-expert-parallel": deployment.shares_experts,
        }
    )


def count_capacity(
    geometry: CacheGeometry, pool_bytes: int, *, token_bytes_per_layer: int, length: int
) -> Capacity:
    """Return what a pool holds.

    Args:
        geometry: What layers cache.
        pool_bytes: The pool on each GPU.
        token_bytes_per_layer: The cache of one token in one layer on each GPU.
        length: Tokens of each sequence.
    """
    group_size = _choose_group_size(geometry)
    num_full = -(-geometry.num_full // group_size)
    num_sliding = -(-geometry.num_sliding // group_size)
    block_bytes = BLOCK_TOKENS * token_bytes_per_layer * group_size
    num_blocks = max(pool_bytes // block_bytes - _NULL_BLOCKS, 0)
    blocks = num_full * -(-length // BLOCK_TOKENS)
    if geometry.window is not None:
        kept = min(geometry.window - 1 + BATCHED_TOKENS, length)
        blocks += num_sliding * (-(-kept // BLOCK_TOKENS) + 1)
    num_tokens = num_blocks // max(num_full + num_sliding, 1) * BLOCK_TOKENS
    return Capacity(pool_bytes, num_tokens, num_blocks // blocks)


def _choose_group_size(geometry: CacheGeometry) -> int:
    """Return the layers of a group: as many as the rarer kind has, or all of one kind."""
    counts = [num for num in (geometry.num_full, geometry.num_sliding) if num]
    least, most = min(counts), max(counts)
    return most if most < least * _MOST_PADDING else least
