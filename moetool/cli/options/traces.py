"""Declare the options of commands that read a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG
from moetool.trace.metadata_fields import MOST_IDS

TRACE_PANEL = "Trace"

TraceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE",
        help="A .parquet or .csv trace, or a folder of Parquet parts.",
        show_default=False,
    ),
]
ByOption = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="COLUMN",
        help="Column that groups the tokens, such as domain, phase or prompt_id.",
        rich_help_panel=TRACE_PANEL,
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LIST",
        help="Read only these layers, such as 0,2-5.",
        rich_help_panel=TRACE_PANEL,
    ),
]
NumExpertsOption = Annotated[
    int | None,
    typer.Option(
        "--num-experts",
        min=1,
        max=MOST_IDS,
        metavar="N",
        help="Experts per layer, for a trace without metadata.",
        rich_help_panel=TRACE_PANEL,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=1,
        max=MOST_IDS,
        metavar="K",
        help="Experts per decision, for a trace without metadata.",
        rich_help_panel=TRACE_PANEL,
    ),
]
TokensPerBatchOption = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-batch",
        min=1,
        metavar="N",
        help="Consecutive tokens that make a batch. Default: each prompt is a batch.",
    ),
]
NoValidateOption = Annotated[
    bool,
    typer.Option(
        "--no-validate",
        metavar=FLAG,
        help="Skip the checks: count rows that a valid trace can't have, such as duplicates.",
        rich_help_panel=TRACE_PANEL,
    ),
]
