"""Declare the options that choose and prepare the prompts of `moetool route-trace`."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from moetool.choices import without_effect
from moetool.cli.options.shared import FLAG
from moetool.cli.usage.explain import PROMPT_SUFFIXES
from moetool.errors import UsageError
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.limits import PromptLimits

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


def check_prompt(prompt: str | None, *, fields: PromptFields, limits: PromptLimits) -> None:
    """Refuse a single prompt that names a file of prompts, and options that it leaves without use.

    Args:
        prompt: The text of --prompt; None without it.
        fields: The names of a file's columns.
        limits: The limits on the number of a file's prompts.

    Raises:
        UsageError: The prompt is the name of a file, or such an option is given with it.
    """
    if prompt is None:
        return
    if prompt.endswith(PROMPT_SUFFIXES) and os.path.isfile(prompt):
        raise UsageError(
            f"--prompt takes a text, and '{prompt}' is a file.",
            hint=f"Did you mean --prompts {shlex.quote(prompt)}?",
        )
    defaults = PromptFields()
    options = (
        ("--limit", limits.total, None),
        ("--limit-per-domain", limits.per_domain, None),
        ("--id-field", fields.prompt_id, defaults.prompt_id),
        ("--text-field", fields.text, defaults.text),
        ("--domain-field", fields.domain, defaults.domain),
    )
    useless = {option: option for option, given, default in options if given != default}
    if useless:
        raise without_effect(
            useless, because="a single prompt is given", unless="give a file with --prompts"
        )


def check_special_tokens(*, chat: bool, special_tokens: bool) -> None:
    """Refuse --no-special-tokens where a chat template adds them.

    Raises:
        UsageError: Both are given.
    """
    if chat and not special_tokens:
        raise without_effect(
            {"--no-special-tokens": "this choice of special tokens"},
            because="the chat template adds its own",
            unless="--chat",
        )
