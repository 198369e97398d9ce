"""Choose the page of `moetool tokens` that its options ask for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from moetool.choices import without_effect
from moetool.errors import UsageError


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
