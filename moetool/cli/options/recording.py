"""Declare the options of `moetool route-trace` that load the model and record it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.completion import complete_checkpoints
from moetool.cli.options.shared import (
    FLAG,
    MODEL_PANEL,
    OUTPUT_PANEL,
    make_dtype_option,
    silence_libraries,
)
from moetool.memory.scenario import Dtype
from moetool.tracing.options import ParallelPlan

_RECORDING_PANEL = "Recording"
# More would fill a terminal's scrollback.
_MOST_SHOWN = 100


class TraceFormat(StrEnum):
    """File formats of a trace."""

    PARQUET = "parquet"
    CSV = "csv"


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
    int,
    typer.Option(min=1, metavar="N", help="Prompts per batch.", rich_help_panel=MODEL_PANEL),
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
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LAYERS",
        help="Record only these layers, such as 0,2-5.",
        rich_help_panel=_RECORDING_PANEL,
    ),
]
Probabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        metavar=FLAG,
        help="Also write the routers' probabilities, to a second file next to the output.",
        rich_help_panel=_RECORDING_PANEL,
    ),
]
Saliency = Annotated[
    bool,
    typer.Option(
        "--saliency",
        metavar=FLAG,
        help="Also run each chosen expert again, and write REAP's sums next to the output.",
        rich_help_panel=_RECORDING_PANEL,
    ),
]
AllowInexact = Annotated[
    bool,
    typer.Option(
        "--allow-inexact",
        metavar=FLAG,
        help="Also trace models whose experts do not run exactly what their router chose.",
        rich_help_panel=_RECORDING_PANEL,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="A .parquet or .csv file, or - for CSV on stdout (the default in a pipe).",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Format = Annotated[
    TraceFormat | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        case_sensitive=False,
        help="parquet or csv. Default: from the suffix of --output.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Show = Annotated[
    int | None,
    typer.Option(
        "--show",
        min=0,
        max=_MOST_SHOWN,
        metavar="N",
        help="Show the text and the experts of the first N prompts. Default: of all, up to 3.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        metavar=FLAG,
        help="Show neither progress nor summary on stderr.",
        callback=silence_libraries,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
