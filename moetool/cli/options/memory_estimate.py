"""Declare the options of `moetool memory-estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.completion import complete_gpus
from moetool.cli.options.shared import FLAG
from moetool.memory.scenario import (
    NUM_NEW_TOKENS,
    Scenario,
    Task,
)

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
