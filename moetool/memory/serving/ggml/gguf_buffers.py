"""Sizes of llama.cpp's model and cache buffers, as it reports them on the CPU.

- `llama_kv_cache` and `llama_kv_cache_iswa` (src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp):
  cells are reserved for every sequence, in multiples of 256; latent attention keeps no values;
  sliding-window layers keep a window and one micro-batch.
- `convert_hf_to_gguf.py`: vectors and routers are F32, everything else has the file's type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from moetool.memory.serving.geometry import CacheGeometry
from moetool.memory.serving.ggml.compute_buffer import CPU_ALIGNMENT
from moetool.memory.serving.ggml.sizes import count_window_cells, pad_cells

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UBATCH_TOKENS = 512
# Bytes of a number: a block of 32 has a scale of two bytes in q8_0, and of one in mxfp4.
TYPE_BYTES = {
    "f32": Fraction(4),
    "f16": Fraction(2),
    "bf16": Fraction(2),
    "q8_0": Fraction(34, 32),
    "mxfp4": Fraction(17, 32),
}
_FLOAT_BYTES = 4
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_ROUTERS = (".gate.weight", ".router.weight")


def list_tensor_sizes(
    skeleton: PreTrainedModel, tensor_type: str, expert_type: str | None = None
) -> Iterator[tuple[str, int]]:
    """Yield the path and the bytes of each tensor of a GGUF file, without alignment.

    Args:
        skeleton: The model on the meta device.
        tensor_type: The type of matrices, one of `TYPE_BYTES`.
        expert_type: The type of experts' matrices; None for the same.
    """
    for path, values in skeleton.named_parameters():
        is_bias = path.endswith(("bias", ".sinks"))
        is_float = values.dim() == 1 or is_bias or path.endswith(_ROUTERS)
        kind = (expert_type or tensor_type) if ".experts." in path else tensor_type
        size = TYPE_BYTES["f32" if is_float else kind] * values.numel()
        # Gate and up, or the halves of the latent's expansion, are separate tensors.
        is_split = ".gate_up_proj" in path or path.endswith("kv_b_proj.weight")
        for _ in range(2 if is_split else 1):
            yield path, math.ceil(size / (2 if is_split else 1))
    for path, buffer in skeleton.named_buffers():
        if path.endswith("e_score_correction_bias"):
            yield path, buffer.numel() * _FLOAT_BYTES


def count_weights_bytes(
    skeleton: PreTrainedModel, tensor_type: str, expert_type: str | None = None
) -> int:
    """Return the bytes of all tensors, each padded to the alignment of the CPU's buffers."""
    sizes = list_tensor_sizes(skeleton, tensor_type, expert_type)
    return sum(_pad(size) for _, size in sizes)


def list_gpu_weights(
    skeleton: PreTrainedModel, tensor_type: str, *, num_gpus: int, expert_type: str | None = None
) -> list[int]:
    """Return the bytes of the tensors on each GPU with all layers on GPUs.

    The embedding stays on the host. Where it is the head too, the last GPU has a copy as the head.
    """
    table: Any = skeleton.get_input_embeddings()
    head: Any = skeleton.get_output_embeddings()  # type: ignore[no-untyped-call]
    is_tied = head is not None and head.weight is table.weight
    places = place_layers(_count_layers(skeleton), num_gpus=num_gpus)
    on_host = {path for path, values in skeleton.named_parameters() if values is table.weight}
    totals = [0] * num_gpus
    for path, size in list_tensor_sizes(skeleton, tensor_type, expert_type):
        if path not in on_host or is_tied:
            found = _LAYER.search(path)
            place = places[-1] if found is None else places[int(found[1])]
            totals[place] += _pad(size)
    return totals


def place_layers(num_layers: int, *, num_gpus: int) -> list[int]:
    """Return the GPU of each layer, and of what follows the last one, for GPUs with equal memory."""
    num_parts = num_layers + 1
    return [number * num_gpus // num_parts for number in range(num_parts)]


def _pad(size: int) -> int:
    return -(-size // CPU_ALIGNMENT) * CPU_ALIGNMENT


def _count_layers(skeleton: PreTrainedModel) -> int:
    found = [_LAYER.search(path) for path, _ in skeleton.named_parameters()]
    return 1 + max((int(match[1]) for match in found if match), default=0)


def count_cache_bytes(
    geometry: CacheGeometry,
    *,
    context: int,
    num_sequences: int,
    cache_type: str,
    ubatch: int = UBATCH_TOKENS,
) -> int:
    """Return the bytes of the KV buffers.

    Args:
        geometry: What layers cache.
        context: `n_ctx`, which all sequences share.
        num_sequences: `n_seq_max`, each with separate cells.
        cache_type: The type of keys and values.
        ubatch: `n_ubatch`, tokens of a micro-batch.
    """
    cells = pad_cells(pad_cells(context) // num_sequences)
    cell_bytes = geometry.count_values() * TYPE_BYTES[cache_type]
    kept = geometry.num_full * cells
    if geometry.window is not None:
        window_cells = count_window_cells(cells, window=geometry.window, ubatch=ubatch)
        kept += geometry.num_sliding * window_cells
    return math.ceil(kept * num_sequences * cell_bytes)


def count_logits_bytes(vocab_size: int, *, context: int, ubatch: int = UBATCH_TOKENS) -> int:
    """Return the logits of one micro-batch: the least that the compute buffer holds."""
    return vocab_size * min(pad_cells(context), ubatch) * _FLOAT_BYTES
