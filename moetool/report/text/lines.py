"""Words of unknown length and origin, cut into lines of a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from moetool.printable import printable
from moetool.report.text.tables import WIDTH

# Longer than any sentence of moetool's, and short enough for a screen.
_LONGEST_WORDS = 2_000


def wrap_words(words: str, *, width: int = WIDTH) -> list[str]:
    """Return words as lines of at most so many columns, wide characters taking two.

    A word that is longer than a line goes on in the next one.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None)
    lines = Text(make_printable(words)).wrap(console, width, overflow="fold")
    return [line.plain.rstrip() for line in lines]


def make_printable(words: str) -> str:
    """Return words on one line, without characters that would steer a terminal.

    Names of models and what their configurations state may hold any, and be of any length.
    """
    return printable(" ".join(words.split()), max_length=_LONGEST_WORDS)
