"""Lay out lines of words: labelled facts, paragraphs, notes, and lines to copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from moetool.report.text.styles import Style, Words, as_text, style_words

# Columns that the label of a fact takes.
LABEL = 12
# Longer lines of prose are hard to read, however wide the terminal is.
_WIDEST_PROSE = 120
_NOTE_INDENT = 2


@dataclass(frozen=True)
class Paragraph:
    """Words broken into lines of any terminal; wide characters take two columns.

    A word longer than a line continues on the next one.

    Attributes:
        words: The words, on one line.
        first: What stands before the first line, in place of its indent.
        indent: Columns before every line.
        hang: Columns before every line except the first, in addition.
    """

    words: Text
    first: Text | None = None
    indent: int = 0
    hang: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, _WIDEST_PROSE) - self.indent - self.hang
        for number, line in enumerate(self.words.wrap(console, width, overflow="fold")):
            line.rstrip()
            start = " " * (self.indent + (self.hang if number else 0))
            yield Text.assemble(self.first or start if number == 0 else start, line)


@dataclass(frozen=True)
class WholeLine:
    """A line to copy, which stays whole, however long: a folded line could not be copied."""

    line: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.line, no_wrap=True, overflow="ignore")


def make_fact(label: str, words: Words) -> Paragraph:
    """Return a fact, with its label before the first line."""
    first = style_words(Text(f"{label:<{LABEL}}"), Style.LABEL)
    return Paragraph(as_text(words), first=first, indent=LABEL)


def make_facts(label: str, facts: Iterable[Words]) -> Iterator[Paragraph]:
    """Yield several facts that share a label, which stands before the first."""
    for number, words in enumerate(facts):
        yield make_fact("" if number else label, words)


def make_paragraphs(paragraphs: Iterable[Words], style: Style | None = None) -> list[Paragraph]:
    """Return paragraphs, each of which begins on its own line. Empty ones are left out."""
    texts = [as_text(words) for words in paragraphs]
    return [Paragraph(style_words(text, style) if style else text) for text in texts if text]


def make_notes(notes: Iterable[Words], style: Style = Style.MUTED) -> list[Paragraph]:
    """Return notes. All but the first line of a note are indented."""
    return [
        Paragraph(style_words(words, style), hang=_NOTE_INDENT) for words in notes if as_text(words)
    ]


def make_whole_lines(lines: Iterable[str]) -> list[WholeLine]:
    """Return lines to copy, such as commands."""
    return [
        WholeLine(
            "".join(
                letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
            )
        )
        for line in lines
    ]
