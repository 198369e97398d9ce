"""Turn the blocks of a page into text of a width, with colour or without."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from copy import copy

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table

from moetool.report.renderer import View
from moetool.report.text.styles import THEME

# Columns of lines of words in a file or pipe, where tables are as wide as they need to be.
FILE_WIDTH = 80
_ANY_WIDTH = 1_000_000
_ANY_HEIGHT = 100

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
    """Return a table with less space between its columns if that keeps cells or words whole.

    Where there is no terminal, the console becomes as wide as the table.
    """
    options = console.options.update(max_width=_ANY_WIDTH)
    size = Measurement.get(console, options, table)
    if view.width is None:
        console.width = max(FILE_WIDTH, size.maximum)
        return table
    if size.maximum <= view.width:
        return table
    narrow = copy(table)
    narrow.padding = 0
    keeps_cells = Measurement.get(console, options, narrow).maximum <= view.width
    return narrow if keeps_cells or size.minimum > view.width else table
