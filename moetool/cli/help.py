"""Lay out the text of `--help` so that Typer wraps it to the terminal."""

from __future__ import annotations

import inspect
from collections.abc import Sequence


def unwrap(docstring: str | None) -> str:
    """Return a docstring with each paragraph on one line.

    Typer keeps the line breaks of all paragraphs except the first, whatever the terminal's width.
    """
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def list_examples(commands: Sequence[str]) -> str:
    """Return the end of a help text: commands to copy, each in its own paragraph.

    Lines of one paragraph are joined by some versions of Typer.
    """
    return "\n\n".join(("Examples:", *commands))
