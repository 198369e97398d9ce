"""Declare the options of `moetool route-trace` about what is recorded, written and shown."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG, OUTPUT_PANEL, silence_libraries

_RECORDING_PANEL = "Recording"
# More would fill a terminal's scrollback.
_MOST_SHOWN = 100


class TraceFormat(StrEnum):
    """File formats of a trace."""

    PARQUET = "parquet"
    CSV = "csv"


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
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar=FLAG,
        help="Go on where an interrupted run of this command ended.",
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
VerboseOption = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        metavar=FLAG,
        help="End with a line on stderr that says where the time went.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
