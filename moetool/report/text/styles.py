"""Name the styles that words may have on a terminal with colour."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from rich.text import Text
from rich.theme import Theme

from moetool.printable import printable

# Longer than any sentence of moetool's, and short enough for a screen.
_LONGEST_WORDS = 2_000

# Words as they are, or with styles.
Words = str | Text


class Style(StrEnum):
    """Styles by meaning. None carries information that the words don't.

    Attributes:
        STRONG: A verdict or a headline figure.
        GOOD: Fits, agrees.
        BAD: Does not fit, differs.
        WARNING: A remark that changes how a figure is to be read.
        LABEL: The name of a fact.
        MUTED: Legends and notes.
        BAR: Bars of block characters.
    """

    STRONG = "strong"
    GOOD = "good"
    BAD = "bad"
    WARNING = "warning"
    LABEL = "label"
    MUTED = "muted"
    BAR = "bar"


# The sixteen colours that every terminal has, in the shades that its user chose.
THEME = Theme(
    {
        Style.STRONG: "bold",
        Style.GOOD: "green",
        Style.BAD: "red",
        Style.WARNING: "yellow",
        Style.LABEL: "cyan",
        Style.MUTED: "dim",
        Style.BAR: "cyan",
        "table.header": "bold",
    }
)


def style_words(words: Words, style: Style) -> Text:
    """Return words in a style. Styles within the words stay."""
    text = as_text(words).copy()
    text.stylize_before(style)
    return text


def join_parts(parts: Iterable[Words], separator: str = " ") -> Text:
    """Return words joined into one line, each part with its styles."""
    return Text(separator).join(map(as_text, parts))


def as_text(words: Words) -> Text:
    """Return words as text that can be wrapped; a plain string is made printable first."""
    return words if isinstance(words, Text) else Text(make_printable(words))


def make_printable(words: str) -> str:
    """Return words on one line, without characters that would steer a terminal.

    Names of models and values of their configurations may contain any character, at any length.
    """
    return printable(" ".join(words.split()), max_length=_LONGEST_WORDS)
