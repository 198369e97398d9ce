"""Declare the options of `moetool route-trace` that generate tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.shared import make_cache_option
from moetool.memory.scenario import CacheKind

_PANEL = "Generation"

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Generate up to N tokens per prompt, and trace them too.",
        rich_help_panel=_PANEL,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Sample at this temperature. Default: take the most likely token.",
        rich_help_panel=_PANEL,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Sample from the most likely tokens whose probabilities add up to P.",
        rich_help_panel=_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Random seed for sampling.", rich_help_panel=_PANEL),
]
CacheOption = Annotated[CacheKind, make_cache_option(panel=_PANEL)]
SaveText = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the generated texts to this .jsonl file.",
        rich_help_panel=_PANEL,
    ),
]
