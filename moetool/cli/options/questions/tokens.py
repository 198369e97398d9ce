"""Declare the options that choose a page of `moetool tokens`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer

from moetool.choices import without_effect
from moetool.errors import UsageError
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


class TokenPage(Enum):
    """Pages of the command, by the words for what they show."""

    ALL = "all tokens are shown"
    EXPERT = "the tokens of one expert are shown"
    TOKEN = "the experts of one token are shown"
    PROMPT = "one prompt is shown"


@dataclass(frozen=True)
class TokenQuestion:
    """The options that choose a page, and what they ask for; None where not given."""

    layer: int | None
    expert: int | None
    stack: str | None
    by: str | None
    token: str | None
    token_id: int | None
    prompt: str | None
    min_count: int | None
    top: int | None

    def choose_page(self, *, layers: str | None) -> TokenPage:
        """Return the page that is asked for.

        Args:
            layers: The layers to read.

        Raises:
            UsageError: Several are, a part of the question is missing, or an option has no effect.
        """
        asked = {
            "--expert": (self.expert, TokenPage.EXPERT),
            "--token": (self.token, TokenPage.TOKEN),
            "--token-id": (self.token_id, TokenPage.TOKEN),
            "--prompt": (self.prompt, TokenPage.PROMPT),
        }
        given = {flag: page for flag, (value, page) in asked.items() if value is not None}
        if len(given) > 1:
            first, second, *_ = given
            raise UsageError(
                f"{first} and {second} ask for different pages.", hint=f"Give {first} or {second}."
            )
        if self.expert is not None and self.layer is None:
            raise UsageError(
                f"Expert {self.expert} is not clear without a layer.",
                hint="Add --layer with its number.",
            )
        page = next(iter(given.values()), TokenPage.ALL)
        self._refuse_useless(page, layers)
        return page

    def _refuse_useless(self, page: TokenPage, layers: str | None) -> None:
        expert, everything = {TokenPage.EXPERT}, {TokenPage.ALL}
        options = {
            "--layer": (self.layer, expert, "add --expert"),
            "--stack": (self.stack, expert, "add --expert"),
            "--by": (self.by, expert, "add --expert"),
            "--min-count": (self.min_count, everything, "ask for all tokens"),
            "--top": (self.top, everything | expert, "ask for all tokens"),
            "--layers": (layers, {*TokenPage} - expert, "ask for all tokens"),
        }
        useless = {
            flag: unless
            for flag, (value, pages, unless) in options.items()
            if value is not None and page not in pages
        }
        if useless:
            raise without_effect(
                {flag: flag for flag in useless},
                because=page.value,
                unless=next(iter(useless.values())),
            )
