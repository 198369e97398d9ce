"""Lay out tables for a terminal, a file and a README."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from moetool.printable import printable
from moetool.report.text.styles import Style, Words

_LONGEST_CELL = 1_000
# Columns of a whole bar, where there is space.
_BAR = 20


def make_table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Collection[int] = ()
) -> Table:
    """Return a table, with the columns in `right` aligned to the right.

    Headers and cells may come from files, so they are made printable and cut to a length.
    """
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), border_style=Style.MUTED
    )
    for index, header in enumerate(headers):
        table.add_column(
            _make_cell(header), justify="right" if index in right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(_make_cell, row))
    return table


@dataclass(frozen=True)
class Bar:
    """A bar for a share from 0 to 1, which narrows where a table has little space."""

    share: float

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        # The same for all bars, so that those of a column have one scale.
        return Measurement(1, _BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(draw_bar(self.share, width=min(options.max_width, _BAR)), style=Style.BAR)


def draw_bar(share: float, *, width: int) -> str:
    """Return block characters for a share from 0 to 1 of `width`, to an eighth of a column."""
    eighths = round(share * width * 8)
    full, part = divmod(eighths, 8)
    return "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[part]


@dataclass(frozen=True)
class Items:
    """Words that commas separate, on lines that end only between them."""

    items: tuple[str, ...]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(cell_len, self._parts())), cell_len(" ".join(self._parts())))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[str] = []
        for part in self._parts():
            if lines and cell_len(f"{lines[-1]} {part}") <= options.max_width:
                lines[-1] += f" {part}"
            else:
                lines.append(part)
        yield Text("\n".join(lines), overflow="fold")

    def _parts(self) -> list[str]:
        """Return the items, all but the last with a comma."""
        shown = [printable(item, max_length=_LONGEST_CELL) for item in self.items]
        return [*(f"{item}," for item in shown[:-1]), *shown[-1:]]


# A line of text, several lines, items, or a bar.
Cell = Words | tuple[str, ...] | Bar | Items


def _make_cell(words: Cell) -> Text | Bar | Items:
    if isinstance(words, Text | Bar | Items):
        return words
    lines = (words,) if isinstance(words, str) else words
    return Text("\n".join(printable(line, max_length=_LONGEST_CELL) for line in lines))
