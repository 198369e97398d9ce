"""Declare the options of commands that draw figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.shared import OUTPUT_PANEL

# Columns of a page, in inches.
COLUMN_WIDTH_IN = 3.3

FigureOption = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the figure to this .svg, .pdf or .png file.",
        show_default=False,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
WidthOption = Annotated[
    float,
    typer.Option(
        "--width",
        metavar="INCHES",
        help="Width of the figure: 3.3 is a column of a page with two columns.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer",
        min=0,
        metavar="N",
        help="Show this layer in the map. Default: the most telling one.",
    ),
]
PermutationsOption = Annotated[
    int,
    typer.Option("--permutations", min=1, metavar="N", help="Permutations of the prompts' labels."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Random seed.")]
