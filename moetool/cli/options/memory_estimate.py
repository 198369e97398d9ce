"""Declare the options of `moetool memory-estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.completion import complete_gpus
from moetool.cli.options.shared import FLAG
from moetool.cli.options.values import parse_dtype
from moetool.memory.scenario import (
    NUM_NEW_TOKENS,
    Attention,
    CacheKind,
    Dtype,
    ExpertsImplementation,
    Scenario,
    Task,
)
from moetool.quantized.kinds import Quantization, QuantizedExperts

_LOADING_PANEL = "How the model is loaded and run"
_HARDWARE_PANEL = "Hardware"

BatchSize = Annotated[
    str,
    typer.Option(metavar="N,...", help="Sequences in a batch. Several sizes make a sweep."),
]
PromptTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N,...",
        help=f"Prompt tokens of each sequence. Default: {Scenario.num_prompt_tokens}, or as many as "
        "the model's context allows.",
    ),
]
NewTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N,...",
        help=f"New tokens of each sequence. Default: {NUM_NEW_TOKENS} for generate, within the "
        "context, else none.",
    ),
]
TaskOption = Annotated[
    Task,
    typer.Option(
        "--task",
        metavar="TASK",
        case_sensitive=False,
        help="generate: transformers' generate. forward: one call, with logits for every "
        "position. trace: what `moetool route-trace` runs.",
    ),
]
Padding = Annotated[
    bool,
    typer.Option(
        "--padding", metavar=FLAG, help="Simulate prompts of different lengths, with padding masks."
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        parser=parse_dtype,
        help="Dtype of the weights: auto (from the configuration), float32, bfloat16 or float16.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
QuantizationOption = Annotated[
    Quantization,
    typer.Option(
        metavar="KIND",
        case_sensitive=False,
        help="Quantization by bitsandbytes while loading: none, int8, nf4 or fp4.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
DoubleQuantization = Annotated[
    bool,
    typer.Option(
        "--double-quantization",
        metavar=FLAG,
        help="Quantize the scales of 4-bit weights too.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
Experts = Annotated[
    QuantizedExperts,
    typer.Option(
        metavar="HOW",
        case_sensitive=False,
        help="Experts under --quantization. as-loaded: as transformers loads them, which leaves "
        "fused experts in their dtype. quantized: as if they were quantized as well.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
AttentionOption = Annotated[
    Attention | None,
    typer.Option(
        metavar="NAME",
        case_sensitive=False,
        help="Attention implementation: eager or sdpa. Default: transformers' choice.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
ExpertsImplementationOption = Annotated[
    ExpertsImplementation | None,
    typer.Option(
        metavar="NAME",
        case_sensitive=False,
        help="Experts implementation: eager, grouped_mm or batched_mm. Default: transformers' "
        "choice.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
CacheOption = Annotated[
    CacheKind,
    typer.Option(
        metavar="KIND",
        case_sensitive=False,
        help="KV cache used for generation: dynamic or static.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help="A GPU, such as h200 or rtx-4090 (see `moetool gpus`), an amount of memory, such as "
        "24GiB, or here for this machine's GPU. Adds its limits, offloading and speed. Default: "
        "compare all known GPUs.",
        autocompletion=complete_gpus,
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="TRACE",
        help="Bound the speed by the routing in this trace instead of uniform routing.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure",
        metavar=FLAG,
        help="Also run the model on this machine's GPU, and compare.",
        rich_help_panel=_HARDWARE_PANEL,
    ),
]
