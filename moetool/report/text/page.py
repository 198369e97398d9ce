"""Turn the blocks of a page into text of a width, with colour or without."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from moetool.report.renderer import View
from moetool.report.text.styles import THEME

# Columns of lines of words in a file or pipe, where tables are as wide as they need to be.
FILE_WIDTH = 80
_ANY_WIDTH = 1_000_000
_ANY_HEIGHT = 100
# Top, right, bottom and left of a cell: two columns between cells, or one.
_CLOSE, _CLOSEST = (0, 1, 0, 0), (0, 0, 0, 0)

# What stands together, without an empty line in between.
Block = Sequence[RenderableType]


def render_page(blocks: Iterable[Block], view: View) -> str:
    """Return blocks as text, an empty line between them. Empty blocks are left out.

    A terminal's width holds everything, and cells that are too long are folded. Elsewhere no cell
    is broken, so that lines can be searched and cut.
    """
    return "\n".join(_render_block(block, view) for block in blocks if block)


def _render_block(block: Block, view: View) -> str:
    text = io.StringIO()
    console = Console(
        file=text,
        width=view.width or FILE_WIDTH,
        # Without a height, rich looks at the terminal itself.
        height=_ANY_HEIGHT,
        color_system="256" if view.has_color else None,
        force_terminal=view.has_color,
        no_color=False,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
        theme=THEME,
    )
    for item in block:
        shown = _fit_table(item, console, view) if isinstance(item, Table) else item
        # In a group, because rich would join lines of text and lose how each is wrapped.
        console.print(Group(shown), crop=False)
        console.width = view.width or FILE_WIDTH
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().split("\n")[:-1])


def _fit_table(table: Table, console: Console, view: View) -> Table:
    """Return a table with less space and lower headings if that keeps its cells whole.

    Where there is no terminal, the console becomes as wide as the table.
    """
    options = console.options.update(max_width=_ANY_WIDTH)
    size = Measurement.get(console, options, table)
    if view.width is None:
        console.width = max(FILE_WIDTH, size.maximum)
        return table
    if size.maximum <= view.width:
        return table
    broken = _break_headings(table, console, options)
    for fitting in (_pad(table, _CLOSE), broken, _pad(broken, _CLOSE)):
        if Measurement.get(console, options, fitting).maximum <= view.width:
            return fitting
    narrow = _pad(broken, _CLOSEST)
    keeps_cells = Measurement.get(console, options, narrow).maximum <= view.width
    if keeps_cells:
        return narrow
    return _pad(table, _CLOSEST) if size.minimum > view.width else table


def _pad(table: Table, padding: tuple[int, int, int, int]) -> Table:
    padded = copy(table)
    padded.padding = padding
    return padded


def _break_headings(table: Table, console: Console, options: ConsoleOptions) -> Table:
    """Return a table whose headings are broken between words, to the width of the cells below."""
    broken = copy(table)
    broken.columns = []
    for column in table.columns:
        heading = column.header if isinstance(column.header, Text) else Text(str(column.header))
        widths = [Measurement.get(console, options, cell).maximum for cell in column.cells]
        longest = Measurement.get(console, options, heading).minimum
        lines = heading.wrap(console, max(longest, 1, *widths))
        for line in lines:
            line.rstrip()
        broken.columns.append(replace(column, header=Text("\n").join(lines)))
    return broken
