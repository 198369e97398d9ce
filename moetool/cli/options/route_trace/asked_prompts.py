"""Check which prompts `moetool route-trace` is asked to trace, and read them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.choices import without_effect
from moetool.cli.usage.explain import PROMPT_SUFFIXES
from moetool.errors import UsageError
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.limits import PromptLimits

if TYPE_CHECKING:
    from moetool.tracing.prompts.encoding import SpecialTokens
    from moetool.tracing.prompts.prompts import Prompt

_STDIN = "-"


@dataclass(frozen=True)
class AskedPrompts:
    """The prompts that are asked for.

    Attributes:
        source: Value of --prompts; None without it.
        text: The text of --prompt; None without it.
        fields: The names of a file's columns.
        limits: The limits on the number of a file's prompts.
        chat: Whether a chat template will be applied.
        with_special_tokens: Whether special tokens will be added.

    Raises:
        UsageError: The text is the name of a file, an option about files is given with it, or a
            chat template is to add no special tokens.
    """

    source: str | None
    text: str | None
    fields: PromptFields
    limits: PromptLimits
    chat: bool
    with_special_tokens: bool

    def __post_init__(self) -> None:
        if self.text is not None:
            self._check_text(self.text)
        if self.chat and not self.with_special_tokens:
            raise without_effect(
                {"--no-special-tokens": "this choice of special tokens"},
                because="the chat template adds its own",
                unless="--chat",
            )

    def choose_special_tokens(self) -> SpecialTokens:
        """Return who adds special tokens."""
        from moetool.tracing.prompts.tokens import choose_special_tokens

        return choose_special_tokens(chat=self.chat, special_tokens=self.with_special_tokens)

    def read(self, step: Callable[[str], None]) -> list[Prompt]:
        """Return the prompts.

        Args:
            step: Shows the current step.

        Raises:
            UsageError: Neither a source nor a text is given, or both are.
            InputError: See `read_prompts`.
        """
        from moetool.tracing.prompts.prompts import choose_prompts

        if self.source != _STDIN:  # which may be typed on the terminal
            step("reading prompts")
        return choose_prompts(
            self.source, self.text, fields=self.fields, limits=self.limits, chat=self.chat
        )

    def _check_text(self, text: str) -> None:
        if text.endswith(PROMPT_SUFFIXES) and os.path.isfile(text):
            raise UsageError(
                f"--prompt takes a text, and '{text}' is a file.",
                hint=f"Did you mean --prompts {shlex.quote(text)}?",
            )
        defaults = PromptFields()
        options = (
            ("--limit", self.limits.total, None),
            ("--limit-per-domain", self.limits.per_domain, None),
            ("--id-field", self.fields.prompt_id, defaults.prompt_id),
            ("--text-field", self.fields.text, defaults.text),
            ("--domain-field", self.fields.domain, defaults.domain),
        )
        useless = {option: option for option, given, default in options if given != default}
        if useless:
            raise without_effect(
                useless, because="a single prompt is given", unless="give a file with --prompts"
            )
