"""A question about a GGUF file, in llama.cpp's words."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.catalogue.gpus import Gpu


@dataclass(frozen=True)
class GgufQuestion:
    """A question about a file.

    Attributes:
        gpu: The GPU, or the kind of all of them; None for the CPU alone.
        overhead_bytes: An allowance on the GPU.
        num_gpu_layers: `--n-gpu-layers`; None for all on a GPU.
        num_cpu_moe: `--n-cpu-moe`.
        moves: Patterns of `--override-tensor` with their devices, which come first.
        context: `--ctx-size`; None for the context that the file states.
        ubatch: `--ubatch-size`.
        num_sequences: `--parallel`.
        type_k: `--cache-type-k`.
        type_v: `--cache-type-v`.
        flash_attention: `--flash-attn`: whether it is on; None for what llama.cpp chooses.
        num_gpus: GPUs of that kind.
        shares: `--tensor-split`, one number for each GPU; empty for equal parts.
    """

    gpu: Gpu | None = None
    overhead_bytes: int = 0
    num_gpu_layers: int | None = None
    num_cpu_moe: int = 0
    moves: tuple[tuple[str, int], ...] = ()
    context: int | None = None
    ubatch: int = 512
    num_sequences: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: bool | None = None
    num_gpus: int = 1
    shares: tuple[float, ...] = ()
