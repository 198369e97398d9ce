"""Break words of any length and origin into lines of a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from moetool.printable import printable
from moetool.report.text.tables import WIDTH

# Longer than any sentence of moetool's, and short enough for a screen.
_LONGEST_WORDS = 2_000
# Columns that the label of a fact takes.
LABEL = 12


def wrap_words(words: str, *, width: int = WIDTH) -> list[str]:
    """Return words as lines of at most `width` columns; wide characters take two.

    A word longer than a line continues on the next one.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None)
    lines = Text(make_printable(words)).wrap(console, width, overflow="fold")
    return [line.plain.rstrip() for line in lines]


def wrap_paragraphs(paragraphs: Iterable[str]) -> list[str]:
    """Return the lines of several paragraphs, each beginning on its own line."""
    return [line for words in paragraphs for line in wrap_words(words) if line]


def list_fact(label: str, words: str) -> list[str]:
    """Return the lines of a fact, with its label before the first."""
    lines = wrap_words(words, width=WIDTH - LABEL)
    return [
        f"{'' if number else label:<{LABEL}}{line}".rstrip() for number, line in enumerate(lines)
    ]


def list_notes(notes: Iterable[str]) -> list[str]:
    """Return the lines of notes. All but the first line of a note are indented."""
    found = []
    for note in notes:
        lines = [line for line in wrap_words(note, width=WIDTH - 2) if line]
        found += [line if number == 0 else f"  {line}" for number, line in enumerate(lines)]
    return found


def make_printable(words: str) -> str:
    """Return words on one line, without characters that would steer a terminal.

    Names of models and values of their configurations may contain any character, at any length.
    """
    return printable(" ".join(words.split()), max_length=_LONGEST_WORDS)
