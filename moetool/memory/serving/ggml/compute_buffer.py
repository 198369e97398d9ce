"""The size of llama.cpp's compute buffer (`llama_context::sched_reserve`, src/llama-context.cpp).

Two graphs are reserved, and the buffer is as large as the larger one needs: that of a full
micro-batch with logits of all its tokens, and that of one token for each sequence.
"""

from __future__ import annotations

from moetool.checkpoint.gguf.types import TYPES_BY_NAME
from moetool.memory.serving.ggml.allocation.allocator import (
    count_reserved_bytes,
    list_reserved_bytes,
)
from moetool.memory.serving.ggml.allocation.cuda import Capability, has_attention
from moetool.memory.serving.ggml.allocation.scheduler import GPU, HOST, Devices, schedule
from moetool.memory.serving.ggml.models import build_graph
from moetool.memory.serving.ggml.sizes import ModelSizes, RunSizes, count_window_cells, pad_cells

CPU_ALIGNMENT = 32
CUDA_ALIGNMENT = 128
# Of recent GPUs: what it decides, the kernel for a few tokens, changes no maximum that was measured.
RECENT: Capability = (9, 0)


def count_compute_bytes(
    model: ModelSizes,
    *,
    context: int,
    ubatch: int,
    num_sequences: int,
    has_flash_attention: bool,
    has_quantized_cache: bool,
    has_quantized_values: bool | None = None,
) -> int:
    """Return the bytes of the compute buffer with the whole model on the CPU.

    Args:
        model: The model's sizes.
        context: `n_ctx`, which all sequences share.
        ubatch: `n_ubatch`, tokens of a micro-batch.
        num_sequences: `n_seq_max`, each with separate cells.
        has_flash_attention: Whether flash attention runs.
        has_quantized_cache: Whether the type of keys is a quantized one.
        has_quantized_values: Whether that of values is; None for the same as keys.
    """
    runs = list_runs(
        model,
        context=context,
        ubatch=ubatch,
        num_sequences=num_sequences,
        has_flash_attention=has_flash_attention,
        has_quantized_cache=has_quantized_cache,
        has_quantized_values=has_quantized_values,
    )
    return max(
        count_reserved_bytes(build_graph(model, run), alignment=CPU_ALIGNMENT) for run in runs
    )


def count_gpu_compute_bytes(
    model: ModelSizes,
    *,
    context: int,
    ubatch: int,
    num_sequences: int,
    cache_type: str,
    capability: Capability,
) -> int:
    """Return the bytes of the compute buffer of one GPU with CUDA that has all layers.

    Workspaces of CUDA's kernels are left out. Flash attention is on where CUDA has it, or where the
    cache needs it.

    Args:
        model: The model's sizes.
        context: `n_ctx`, which all sequences share.
        ubatch: `n_ubatch`, tokens of a micro-batch.
        num_sequences: `n_seq_max`, each with separate cells.
        cache_type: Of keys and values.
        capability: The GPU's compute capability.
    """
    has_kernel = has_cuda_attention(model, type_k=cache_type, type_v=cache_type)
    kind, is_quantized = TYPES_BY_NAME[cache_type], TYPES_BY_NAME[cache_type].block > 1
    devices = Devices(
        place_weight=lambda name: HOST if name == "token_embd.weight" else GPU,
        place_layer=lambda _: GPU,
        has_all_layers=True,
        takes_products=True,
        cache_types={"k": kind, "v": kind},
        capability=capability,
        has_attention=has_kernel,
    )
    runs = list_runs(
        model,
        context=context,
        ubatch=ubatch,
        num_sequences=num_sequences,
        has_flash_attention=has_kernel or is_quantized,
        has_quantized_cache=is_quantized,
    )
    graphs = [schedule(build_graph(model, run), devices, num_tokens=run.num_tokens) for run in runs]
    alignments = (CUDA_ALIGNMENT, CPU_ALIGNMENT)
    return max(list_reserved_bytes(graph, alignments)[GPU] for graph in graphs)


def has_cuda_attention(model: ModelSizes, *, type_k: str, type_v: str) -> bool:
    """Return whether CUDA has a kernel of flash attention for a model and its cache."""
    keys = values = model.head_dim
    heads = model.num_heads // model.num_kv_heads
    if model.latent is not None:
        keys, values = model.latent.keys + model.latent.rotary, model.latent.keys
        heads, type_v = model.num_heads, type_k
    return has_attention(
        head_dim=keys, value_dim=values, heads_per_key=heads, type_k=type_k, type_v=type_v
    )


def list_runs(
    model: ModelSizes,
    *,
    context: int,
    ubatch: int,
    num_sequences: int,
    has_flash_attention: bool,
    has_quantized_cache: bool,
    has_quantized_values: bool | None = None,
) -> list[RunSizes]:
    """Return the two graphs that memory is reserved for; arguments are those above."""
    cells = pad_cells(pad_cells(context) // num_sequences)
    window_cells = count_window_cells(cells, window=model.window or 0, ubatch=ubatch)
    num_outputs = min(pad_cells(context), ubatch)
    num_tokens = -(-num_outputs // num_sequences) * num_sequences
    return [
        RunSizes(
            num_tokens=tokens,
            num_outputs=outputs,
            num_streams=num_sequences,
            num_cells=cells,
            num_window_cells=window_cells,
            has_flash_attention=has_flash_attention,
            has_quantized_cache=has_quantized_cache,
            has_quantized_values=has_quantized_values,
        )
        for tokens, outputs in ((num_tokens, num_outputs), (num_sequences, num_sequences))
    ]
