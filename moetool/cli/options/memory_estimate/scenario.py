"""Declare the options of `moetool memory-estimate` that describe the run."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG
from moetool.memory.scenario import (
    NUM_NEW_TOKENS,
    Scenario,
    Task,
)

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
        "position. trace: what `moetool route-trace` runs. train: a step of training.",
    ),
]
Padding = Annotated[
    bool,
    typer.Option(
        "--padding", metavar=FLAG, help="Simulate prompts of different lengths, with padding masks."
    ),
]
