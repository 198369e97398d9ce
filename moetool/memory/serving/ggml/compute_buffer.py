"""The size of llama.cpp's compute buffer (`llama_context::sched_reserve`, src/llama-context.cpp).

Two graphs are reserved, and the buffer is as large as the larger one needs: that of a full
micro-batch with logits of all its tokens, and that of one token for each sequence.
"""

from __future__ import annotations

from moetool.memory.serving.ggml.allocation.allocator import count_reserved_bytes
from moetool.memory.serving.ggml.models import build_graph
from moetool.memory.serving.ggml.placement import take_gpu_part
from moetool.memory.serving.ggml.sizes import ModelSizes, RunSizes, count_window_cells, pad_cells

CPU_ALIGNMENT = 32
CUDA_ALIGNMENT = 128


def count_compute_bytes(
    model: ModelSizes,
    *,
    context: int,
    ubatch: int,
    num_sequences: int,
    has_flash_attention: bool,
    has_quantized_cache: bool,
    has_quantized_values: bool | None = None,
    is_on_gpu: bool = False,
) -> int:
    """Return the bytes of the compute buffer.

    On a GPU, workspaces of CUDA's kernels and what CUDA keeps longer for fused operations are left
    out.

    Args:
        model: The model's sizes.
        context: `n_ctx`, which all sequences share.
        ubatch: `n_ubatch`, tokens of a micro-batch.
        num_sequences: `n_seq_max`, each with separate cells.
        has_flash_attention: Whether flash attention runs.
        has_quantized_cache: Whether the type of keys is a quantized one.
        has_quantized_values: Whether that of values is; None for the same as keys.
        is_on_gpu: Whether all layers are on one GPU, whose buffer is returned; else the whole model
            is on the CPU.
    """
    sizes = []
    for run in list_runs(
        model,
        context=context,
        ubatch=ubatch,
        num_sequences=num_sequences,
        has_flash_attention=has_flash_attention,
        has_quantized_cache=has_quantized_cache,
        has_quantized_values=has_quantized_values,
    ):
        graph = build_graph(model, run)
        if is_on_gpu:
            graph = take_gpu_part(graph)
        alignment = CUDA_ALIGNMENT if is_on_gpu else CPU_ALIGNMENT
        sizes.append(count_reserved_bytes(graph, alignment=alignment))
    return max(sizes)


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
