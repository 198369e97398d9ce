"""Declare the options of `moetool import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.completion import complete_models
from moetool.cli.options.shared import FLAG, MODEL_PANEL, OUTPUT_PANEL
from moetool.trace.metadata_fields import LARGEST_ID, MOST_IDS

_MEGATRON_PANEL = "Megatron-LM"

DetectOption = Annotated[
    bool,
    typer.Option("--detect", metavar=FLAG, help="Show what the files are, and import nothing."),
]
TargetOption = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="The .parquet or .csv file to write; with --detect, a report (.txt, .json, .csv).",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model that was recorded: a folder, a config.json, a Hub id or a catalogue name. "
        "It says which layers route; no weights are read.",
        rich_help_panel=MODEL_PANEL,
        autocompletion=complete_models,
    ),
]
RoutedLayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LIST",
        help="The layers that route, such as 1-26, if not from --model.",
        rich_help_panel=MODEL_PANEL,
    ),
]
NumLayersOption = Annotated[
    int | None,
    typer.Option(
        "--num-layers",
        min=1,
        max=LARGEST_ID + 1,
        metavar="N",
        help="Hidden layers, dense ones included, if not from --model.",
        rich_help_panel=MODEL_PANEL,
    ),
]
NumExpertsOption = Annotated[
    int | None,
    typer.Option(
        "--num-experts",
        min=1,
        max=MOST_IDS,
        metavar="N",
        help="Experts per layer, if neither the files nor --model state them.",
        rich_help_panel=MODEL_PANEL,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=1,
        max=MOST_IDS,
        metavar="K",
        help="Experts per token, if neither the files nor --model state them.",
        rich_help_panel=MODEL_PANEL,
    ),
]
LayerOffsetOption = Annotated[
    str | None,
    typer.Option(
        "--layer-offset",
        metavar="LIST",
        help="First layer of the pipeline stage of each file, such as 0,0,16,16.",
        rich_help_panel=_MEGATRON_PANEL,
    ),
]
MicroBatchOption = Annotated[
    int | None,
    typer.Option(
        "--micro-batch-size",
        min=1,
        metavar="N",
        help="Sequences in a micro-batch, to take them apart.",
        rich_help_panel=_MEGATRON_PANEL,
    ),
]
