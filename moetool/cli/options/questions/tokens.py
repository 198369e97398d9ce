"""Declare the options that choose a page of `moetool tokens`."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.trace.metadata_fields import LARGEST_ID

_PANEL = "What to show"

LayerOption = Annotated[
    int | None,
    typer.Option(
        min=0, max=LARGEST_ID, metavar="N", help="Layer of the expert.", rich_help_panel=_PANEL
    ),
]
ExpertOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=LARGEST_ID,
        metavar="N",
        help="Show the tokens that this expert gets, and contexts.",
        rich_help_panel=_PANEL,
    ),
]
StackOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Stack of the layer, where several have it.",
        rich_help_panel=_PANEL,
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="COLUMN",
        help="With --expert: column that groups its tokens: domain by default.",
        rich_help_panel=_PANEL,
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Show the experts of this token: its piece or its text.",
        rich_help_panel=_PANEL,
    ),
]
TokenIdOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Show the experts of the token with this id.", rich_help_panel=_PANEL
    ),
]
PromptIdOption = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="Show the tokens of this prompt and their experts.",
        rich_help_panel=_PANEL,
    ),
]
MinCountOption = Annotated[
    int | None,
    typer.Option(
        min=2, metavar="N", help="Occurrences that a token id needs to be judged: 10 by default."
    ),
]
TopOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tokens that are listed: 20 by default."),
]
