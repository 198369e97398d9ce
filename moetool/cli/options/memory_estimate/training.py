"""Declare the options of `moetool memory-estimate` that describe training."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moetool.choices import choose
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
    str,
    typer.Option(
        "--freeze",
        metavar="PART|FILE.json",
        help="Train all except this part: router, experts, shared-experts, attention, dense-mlp or "
        "embeddings. Or train only the experts that ESFT's file names.",
        rich_help_panel=_PANEL,
    ),
]
LoraRank = Annotated[
    int | None,
    typer.Option(
        "--lora-rank",
        metavar="RANK",
        help="Train adapters of this rank, as PEFT puts them on linear layers, and nothing else.",
        rich_help_panel=_PANEL,
    ),
]
LoraTargets = Annotated[
    str | None,
    typer.Option(
        "--lora-targets",
        metavar="NAME,...",
        help="Layers with adapters, as in PEFT's target_modules. Default: PEFT's for the "
        "architecture, else attention's projections.",
        rich_help_panel=_PANEL,
    ),
]


def read(
    optimizer: Optimizer | None,
    has_checkpointing: bool,
    freeze: str,
    lora_rank: int | None,
    lora_targets: str | None,
) -> dict[str, Any]:
    """Return the fields of a `Scenario` that options about training set.

    Raises:
        UsageError: `freeze` is neither a part of a model nor the name of a JSON file.
    """
    trained = {
        "optimizer": optimizer,
        "has_checkpointing": has_checkpointing,
        "lora_rank": lora_rank,
        "lora_targets": lora_targets,
    }
    if freeze.lower().endswith(".json"):
        return trained | {"trained_experts": freeze}
    return trained | {"frozen": choose(freeze.lower(), FrozenPart, name="frozen part")}
