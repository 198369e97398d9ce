"""Declare the options that choose and prepare the prompts of `moetool route-trace`."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG

_TOKENS_PANEL = "Tokens of the prompts"
_COLUMNS_PANEL = "Columns of the prompts file"

Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="A .jsonl, .csv, .parquet or .txt file, a folder of them, or - for JSONL on stdin.",
    ),
]
PromptOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="A single prompt, instead of --prompts."),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Trace only the first N prompts."),
]
LimitPerDomain = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Trace only the first N prompts of each domain."),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        metavar=FLAG,
        help="Apply the chat template to each prompt.",
        rich_help_panel=_TOKENS_PANEL,
    ),
]
SpecialTokensOption = Annotated[
    bool,
    typer.Option(
        metavar=FLAG,
        help="Let the tokenizer add tokens such as <s>.",
        rich_help_panel=_TOKENS_PANEL,
    ),
]
MaxPromptTokens = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Truncate prompts to N tokens.", rich_help_panel=_TOKENS_PANEL
    ),
]
IdField = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Column with the prompts' ids.", rich_help_panel=_COLUMNS_PANEL
    ),
]
TextField = Annotated[
    str,
    typer.Option(metavar="NAME", help="Column with their texts.", rich_help_panel=_COLUMNS_PANEL),
]
DomainField = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Column with their domain labels.", rich_help_panel=_COLUMNS_PANEL
    ),
]
