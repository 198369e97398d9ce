"""Declare the options of `moetool select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.analysis.selection.choices import Average, Score
from moetool.cli.options.completion import complete_models
from moetool.cli.options.shared import FLAG, OUTPUT_PANEL
from moetool.cli.options.traces import TRACE_PANEL
from moetool.interchange.exports.selection_formats import SelectionFormat
from moetool.trace.metadata_fields import MOST_IDS

_TRAINING_PANEL = "Experts to train"
_PRUNING_PANEL = "Experts to drop"

By = Annotated[
    Score,
    typer.Option(
        "--by",
        metavar="SCORE",
        case_sensitive=False,
        help="token: share of assignments; gate: mean weight; saliency: REAP's, to drop only.",
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Select a layer's best experts until their scores add up to P.",
        rich_help_panel=_TRAINING_PANEL,
    ),
]
AverageOption = Annotated[
    Average,
    typer.Option(
        "--average",
        metavar="AVERAGE",
        case_sensitive=False,
        help="micro: over tokens; macro: over prompts, of each prompt's mean.",
    ),
]
Domain = Annotated[
    list[str] | None,
    typer.Option(
        "--domain",
        metavar="NAME",
        help="Count only prompts of this domain. Repeat for several.",
        show_default=False,
        rich_help_panel=TRACE_PANEL,
    ),
]
SharedExperts = Annotated[
    bool,
    typer.Option(
        "--shared-experts",
        metavar=FLAG,
        help="Also train the shared experts.",
        rich_help_panel=_TRAINING_PANEL,
    ),
]
OtherModules = Annotated[
    bool,
    typer.Option(
        "--non-expert-modules",
        metavar=FLAG,
        help="Also train everything that is not an expert.",
        rich_help_panel=_TRAINING_PANEL,
    ),
]
FreezeListOption = Annotated[
    bool,
    typer.Option(
        "--freeze-list",
        metavar=FLAG,
        help="Also list the parameters to train, and the rows of fused ones.",
        rich_help_panel=_TRAINING_PANEL,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Take names of parameters and groups of experts from this model's configuration.",
        show_default=False,
        autocompletion=complete_models,
    ),
]
PruneRatio = Annotated[
    float | None,
    typer.Option(
        "--prune-ratio",
        metavar="R",
        help="Also list the share R of each layer's experts with the smallest scores.",
        show_default=False,
        rich_help_panel=_PRUNING_PANEL,
    ),
]
Groups = Annotated[
    int | None,
    typer.Option(
        "--groups",
        min=1,
        max=MOST_IDS,
        metavar="N",
        help="Drop as many from each of N groups, for routers that choose groups first.",
        show_default=False,
        rich_help_panel=_PRUNING_PANEL,
    ),
]
Saliency = Annotated[
    Path | None,
    typer.Option(
        "--saliency",
        metavar="FILE",
        help="Observer file (.pt) of route-trace --saliency or REAP, for --by saliency.",
        show_default=False,
        rich_help_panel=_PRUNING_PANEL,
    ),
]
Export = Annotated[
    SelectionFormat | None,
    typer.Option(
        "--export",
        metavar="TOOL",
        case_sensitive=False,
        help="Write only the file of a tool: esft, llm-compressor, freeze-list or peft.",
        show_default=False,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write to FILE instead of stdout: the report, whose format follows from the suffix "
        "(.txt, .json or .csv), or with --export the file of the tool.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
