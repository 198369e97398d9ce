"""Declare the options of `moetool route-trace` that load the model and run it in batches."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.completion import complete_checkpoints
from moetool.cli.options.shared import MODEL_PANEL, make_dtype_option
from moetool.memory.scenario import Dtype
from moetool.tracing.plans import ParallelPlan

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a Hub id (org/name), or 'demo'.",
        show_default=False,
        autocompletion=complete_checkpoints,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Prompts per batch, at most. Default: 8, or no limit with --max-batch-tokens.",
        rich_help_panel=MODEL_PANEL,
    ),
]
MaxBatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens per batch, at most, with pads and new tokens. A longer prompt runs alone.",
        rich_help_panel=MODEL_PANEL,
    ),
]
DtypeOption = Annotated[Dtype, make_dtype_option("checkpoint", panel=MODEL_PANEL)]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device to run on, such as cpu or cuda:1. Default: a GPU if there is one.",
        rich_help_panel=MODEL_PANEL,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="MAP",
        help="Spread the model over devices: auto (CPU and disk hold the rest), balanced, "
        "sequential, or a .json file that maps module paths to devices.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Parallel = Annotated[
    ParallelPlan | None,
    typer.Option(
        metavar="PLAN",
        case_sensitive=False,
        help="Share the model among processes that torchrun starts, one for each GPU: tensor or "
        "expert.",
        rich_help_panel=MODEL_PANEL,
    ),
]
