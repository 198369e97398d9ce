"""Declare the options of `moetool memory-estimate` about GGUF files."""

from __future__ import annotations

from typing import Annotated, Any

import typer


# `help` and `min` are typer's names.
def gguf_option(flag: str, *, metavar: str, help: str, min: int | None = None) -> Any:
    """Return what typer is to know of an option about GGUF files."""
    return typer.Option(flag, metavar=metavar, min=min, help=help, rich_help_panel="GGUF files")


GpuLayers = Annotated[
    int | None,
    gguf_option(
        "--n-gpu-layers",
        metavar="N",
        min=0,
        help="Layers on the GPU, the head counted as one. Default: all with --gpu.",
    ),
]
CpuMoe = Annotated[
    int | None,
    gguf_option(
        "--n-cpu-moe",
        metavar="N",
        min=0,
        help="First layers whose experts stay on the CPU.",
    ),
]
OverrideTensor = Annotated[
    str | None,
    gguf_option(
        "--override-tensor",
        metavar="PATTERN=DEVICE,...",
        help="Tensors whose names match go to CPU or GPU, as llama.cpp's -ot.",
    ),
]
ContextSize = Annotated[
    int | None,
    gguf_option(
        "--ctx-size",
        metavar="N",
        min=1,
        help="Tokens of the cache, for all sequences of --batch-size. Default: the model's.",
    ),
]
UbatchSize = Annotated[
    int | None,
    gguf_option(
        "--ubatch-size",
        metavar="N",
        min=1,
        help="Tokens of a micro-batch. Default: 512.",
    ),
]
CacheTypeK = Annotated[
    str | None,
    gguf_option(
        "--cache-type-k",
        metavar="TYPE",
        help="Type of cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1. "
        "Default: f16.",
    ),
]
CacheTypeV = Annotated[
    str | None,
    gguf_option(
        "--cache-type-v",
        metavar="TYPE",
        help="Type of cached values, as --cache-type-k.",
    ),
]
FlashAttention = Annotated[
    str | None,
    gguf_option(
        "--flash-attn",
        metavar="MODE",
        help="Flash attention: on, off or auto. Default: auto, which is off where CUDA has no kernel.",
    ),
]
TensorSplit = Annotated[
    str | None,
    gguf_option(
        "--tensor-split",
        metavar="N,N",
        help="Parts of the layers for each of several GPUs. Default: equal ones.",
    ),
]
