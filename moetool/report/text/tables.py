"""Render plain tables that fit a terminal, a file and a README."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from moetool.printable import printable

WIDTH = 80

# One line of text, or several.
Cell = str | tuple[str, ...]

_LONGEST_CELL = 1_000


def render_table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = ()
) -> str:
    """Return a table as text, with the columns in `right` aligned to the right.

    Headers and cells may come from files, so they are made printable and cut to a length.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for index, header in enumerate(headers):
        table.add_column(
            _make_cell(header), justify="right" if index in right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(_make_cell, row))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _make_cell(words: Cell) -> str:
    lines = (words,) if isinstance(words, str) else words
    return "\n".join(printable(line, max_length=_LONGEST_CELL) for line in lines)


def render_bar(share: float, *, width: int) -> str:
    """Return a bar of block characters for a share from 0 to 1, to an eighth of a column."""
    eighths = round(share * width * 8)
    full, part = divmod(eighths, 8)
    return "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[part]
