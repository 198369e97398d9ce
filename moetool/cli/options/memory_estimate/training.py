"""Declare the options of `moetool memory-estimate` that describe training."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.simulation.training.optimizer_kinds import Optimizer

_PANEL = "Training"

OptimizerOption = Annotated[
    Optimizer | None,
    typer.Option(
        "--optimizer",
        metavar="NAME",
        case_sensitive=False,
        help="adamw, adamw-8bit or sgd, with their defaults. Default: adamw.",
        rich_help_panel=_PANEL,
    ),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        metavar=FLAG,
        help="Run layers again in the backward pass instead of keeping their activations.",
        rich_help_panel=_PANEL,
    ),
]
Freeze = Annotated[
    FrozenPart,
    typer.Option(
        "--freeze",
        metavar="PART",
        case_sensitive=False,
        help="Train all except this part: router, experts, shared-experts, attention, dense-mlp or "
        "embeddings.",
        rich_help_panel=_PANEL,
    ),
]
