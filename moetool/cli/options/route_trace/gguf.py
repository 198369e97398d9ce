"""Declare the options of `moetool route-trace` about GGUF files."""

from __future__ import annotations

from typing import Annotated

from moetool.cli.options.memory_estimate.gguf import gguf_option

GpuLayers = Annotated[
    int | None,
    gguf_option(
        "--n-gpu-layers",
        metavar="N",
        min=0,
        help="Layers on the GPU, the head counted as one. Default: all, if there is a GPU.",
    ),
]
Threads = Annotated[
    int | None,
    gguf_option(
        "--threads",
        metavar="N",
        min=1,
        help="Threads of the CPU. Default: one for each CPU.",
    ),
]
ContextSize = Annotated[
    int | None,
    gguf_option(
        "--ctx-size",
        metavar="N",
        min=1,
        help="Tokens of the cache. Default: as many as the longest prompt needs.",
    ),
]
FlashAttention = Annotated[
    str | None,
    gguf_option(
        "--flash-attn",
        metavar="CHOICE",
        help="Flash attention: on, off, or auto (the default: on where it can be).",
    ),
]
