"""Rules of llama.cpp, confirmed by the buffer sizes that it reports on the CPU.

- `llama_kv_cache` and `llama_kv_cache_iswa` (src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp):
  cells are reserved for every sequence, in multiples of 256; latent attention keeps no values;
  sliding-window layers keep a window and one micro-batch.
- `llama_context::output_reserve` (src/llama-context.cpp): a row of logits for each sequence.
- `convert_hf_to_gguf.py`: vectors and routers are F32, everything else has the file's type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from moetool.memory.serving.answer import Capacity
from moetool.memory.serving.geometry import CacheGeometry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCES = (
    "src/llama-kv-cache.cpp: llama_kv_cache",
    "src/llama-kv-cache-iswa.cpp: llama_kv_cache_iswa",
    "src/llama-context.cpp: output_reserve, sched_reserve",
    "convert_hf_to_gguf.py",
)
# Families whose buffers were compared, with matrices in f32, f16 and q8_0.
CONFIRMED_FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss")
CONFIRMED_ON = "llama.cpp on the CPU, with llama-cpp-python 0.3.36"
UBATCH_TOKENS = 512
# Bytes of a number: a block of 32 in q8_0 has a scale of two bytes.
TYPE_BYTES = {
    "f32": Fraction(4),
    "f16": Fraction(2),
    "bf16": Fraction(2),
    "q8_0": Fraction(34, 32),
}
_CELLS = 256
_FLOAT_BYTES = 4
_CPU_ALIGNMENT = 32
_ROUTERS = (".gate.weight", ".router.weight")


def list_tensor_sizes(skeleton: PreTrainedModel, tensor_type: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the bytes of each tensor of a GGUF file, without alignment.

    Args:
        skeleton: The model on the meta device.
        tensor_type: The type of matrices, one of `TYPE_BYTES`.
    """
    for path, values in skeleton.named_parameters():
        is_bias = path.endswith(("bias", ".sinks"))
        is_float = values.dim() == 1 or is_bias or path.endswith(_ROUTERS)
        size = TYPE_BYTES["f32" if is_float else tensor_type] * values.numel()
        # Gate and up, or the halves of the latent's expansion, are separate tensors.
        is_split = ".gate_up_proj" in path or path.endswith("kv_b_proj.weight")
        for _ in range(2 if is_split else 1):
            yield path, math.ceil(size / (2 if is_split else 1))
    for path, buffer in skeleton.named_buffers():
        if path.endswith("e_score_correction_bias"):
            yield path, buffer.numel() * _FLOAT_BYTES


def count_weights_bytes(
    skeleton: PreTrainedModel, tensor_type: str, *, alignment: int = _CPU_ALIGNMENT
) -> int:
    """Return the bytes of all tensors, each padded to an alignment."""
    sizes = list_tensor_sizes(skeleton, tensor_type)
    return sum(-(-size // alignment) * alignment for _, size in sizes)


def count_on_gpu_bytes(skeleton: PreTrainedModel, tensor_type: str) -> int:
    """Return the bytes of the tensors on a GPU with all layers there.

    The embedding stays on the host. Where it is the head too, the GPU has a copy as the head.
    """
    table: Any = skeleton.get_input_embeddings()
    head: Any = skeleton.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: Any = table.weight
    total = count_weights_bytes(skeleton, tensor_type)
    if head is not None and head.weight is embedding:
        return total
    num_values: int = embedding.numel()
    return total - math.ceil(TYPE_BYTES[tensor_type] * num_values)


def count_cache_bytes(
    geometry: CacheGeometry,
    *,
    context: int,
    num_sequences: int,
    cache_type: str,
    ubatch: int = UBATCH_TOKENS,
) -> int:
    """Return the bytes of the KV buffer.

    Args:
        geometry: What layers cache.
        context: `n_ctx`, which all sequences share.
        num_sequences: `n_seq_max`, each with separate cells.
        cache_type: The type of keys and values.
        ubatch: `n_ubatch`, tokens of a micro-batch.
    """
    cells = _pad(_pad(context) // num_sequences)
    cell_bytes = geometry.count_values() * TYPE_BYTES[cache_type]
    kept = geometry.num_full * cells
    if geometry.window is not None:
        kept += geometry.num_sliding * _pad(min(cells, geometry.window + ubatch))
    return math.ceil(kept * num_sequences * cell_bytes)


def count_output_bytes(vocab_size: int, *, num_sequences: int) -> int:
    """Return the bytes of the output buffer, which is in the host's memory."""
    return vocab_size * num_sequences * _FLOAT_BYTES


def count_logits_bytes(vocab_size: int, *, context: int, ubatch: int = UBATCH_TOKENS) -> int:
    """Return the logits of one micro-batch: the least that the compute buffer holds."""
    return vocab_size * min(_pad(context), ubatch) * _FLOAT_BYTES


def count_capacity(
    geometry: CacheGeometry, pool_bytes: int, *, cache_type: str, length: int
) -> Capacity:
    """Return what memory holds in one context, with the same number of cells for each sequence."""
    one = count_cache_bytes(geometry, context=length, num_sequences=1, cache_type=cache_type)
    num_sequences = pool_bytes // one
    return Capacity(pool_bytes, num_sequences * _pad(length), num_sequences)


def _pad(number: int) -> int:
    return -(-number // _CELLS) * _CELLS
