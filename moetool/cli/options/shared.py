"""Declare the options that several commands share, once each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moetool.cli.options.completion import complete_models
from moetool.cli.options.values import parse_dtype
from moetool.process.quiet import hide_download_bars
from moetool.report.renderer import ReportFormat

MODEL_PANEL = "Model"
OUTPUT_PANEL = "Output"

# Typer shows the type of a flag, as if it took a value; an empty name shows none.
FLAG = ""


def make_dtype_option(source: str, *, panel: str) -> Any:
    """Return --dtype, whose `auto` takes the dtype from a source: `checkpoint`."""
    return typer.Option(
        "--dtype",
        metavar="DTYPE",
        parser=parse_dtype,
        help=f"Dtype of the weights: auto (from the {source}), float32, bfloat16 or float16.",
        rich_help_panel=panel,
    )


def make_cache_option(*, panel: str) -> Any:
    """Return --cache, the cache that is used for generation."""
    return typer.Option(
        metavar="KIND",
        case_sensitive=False,
        help="KV cache used for generation: dynamic or static.",
        rich_help_panel=panel,
    )


def silence_libraries(is_quiet: bool) -> bool:
    """Keep libraries from showing progress bars, before any of them is imported."""
    if is_quiet:
        hide_download_bars()
    return is_quiet


ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Folders, config.json files, Hub ids (org/name), catalogue names "
        "(see `moetool models`), or 'demo'.",
        show_default=False,
        autocompletion=complete_models,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of a Hub repository.",
        rich_help_panel=MODEL_PANEL,
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        metavar=FLAG,
        help="Run Python code that the checkpoint brings.",
        rich_help_panel=MODEL_PANEL,
    ),
]
FormatOption = Annotated[
    ReportFormat | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        case_sensitive=False,
        help="table, json or csv. Default: from the suffix of --output, else table.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write to this .txt, .json or .csv file instead of stdout.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
PageOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also make an HTML page about the trace, as `moetool report` does.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        metavar=FLAG,
        help="Replace an existing output file.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        metavar=FLAG,
        help="Show no progress on stderr.",
        callback=silence_libraries,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
