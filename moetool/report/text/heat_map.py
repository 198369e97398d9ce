"""Draw layers and experts as blocks on a terminal with colour, a line for each layer.

A block's height says what its colour says, so that the map can be read without colour. Blue is
below the middle of a scale and orange above it, in shades that dark and light backgrounds show.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from moetool.analysis.binning import Cells, merge_cells, split_evenly
from moetool.report.renderer import View
from moetool.report.text.lines import Paragraph
from moetool.report.text.numbers import format_stack
from moetool.report.text.styles import Style, style_words
from moetool.wording import number_of

_BLOCKS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"
_MOST_LINES = 16
_WIDEST_CELL, _TOUCHING = 4, 2
_NARROWEST = 60
_BELOW = ("color(25)", "color(32)", "color(74)")
_MIDDLE = "color(246)"
_ABOVE = ("color(179)", "color(214)", "color(208)", "color(166)")


@dataclass(frozen=True)
class Scale:
    """Values and the blocks that stand for them.

    Attributes:
        steps: Seven values in ascending order: the lowest block is below the first, the highest
            from the last on.
        colors: Of the eight blocks.
        shown: Blocks that the legend explains, each with its meaning.
        nothing: Meaning of a dot.
    """

    steps: tuple[float, ...]
    colors: tuple[str, ...]
    shown: tuple[tuple[int, str], ...]
    nothing: str

    def draw(self, value: float | None, width: int) -> Text:
        """Return the block for a value, several columns wide."""
        # A gap keeps wide neighbours apart.
        gap = " " if width > _TOUCHING else ""
        if not value:
            return Text(_NOTHING.center(width - len(gap)) + gap, style=Style.MUTED)
        step = bisect_right(self.steps, value)
        return Text(_BLOCKS[step] * (width - len(gap)) + gap, style=self.colors[step])

    def explain(self) -> Text:
        """Return the legend."""
        parts = [
            Text.assemble((_BLOCKS[step], self.colors[step]), f" {meaning}")
            for step, meaning in self.shown
        ]
        parts.append(Text(f"{_NOTHING} {self.nothing}"))
        return Text("   ").join(parts)


# Ratios around 1, with equal steps of the logarithm: a block is 1.4 times the one below it.
AROUND_ONE = Scale(
    steps=(0.297, 0.42, 0.595, 0.841, 1.189, 1.682, 2.378),
    colors=(*_BELOW, _BELOW[2], _MIDDLE, *_ABOVE[1:]),
    shown=((0, "below 0.3×"), (2, "0.5×"), (4, "1×"), (6, "2×"), (7, "2.4× and more")),
    nothing="never",
)
# Ratios above 1.
ABOVE_ONE = Scale(
    steps=(1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0),
    colors=(_MIDDLE, _MIDDLE, _ABOVE[0], _ABOVE[0], _ABOVE[1], _ABOVE[1], _ABOVE[2], _ABOVE[3]),
    shown=((0, "1×"), (2, "1.5×"), (4, "2.5×"), (6, "4×"), (7, "6× and more")),
    nothing="none for certain",
)


@dataclass(frozen=True)
class MapLayer:
    """One layer of a map.

    Attributes:
        cells: Of each expert; None where there is nothing.
    """

    stack: str
    layer: int
    cells: Cells


@dataclass(frozen=True)
class HeatMap:
    """A map of layers and experts, as wide as a terminal has room for.

    Attributes:
        title: A line above the map.
        layers: In order.
        scale: Blocks for values.
        by: Whether cells that share a block show their mean or their largest.
    """

    title: str
    layers: Sequence[MapLayer]
    scale: Scale
    by: Literal["mean", "max"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(self._list_lines())
        label = max(len(name) for name, _ in lines)
        room = options.max_width - label - 1
        num_experts = max(len(layer.cells) for layer in self.layers)
        columns = split_evenly(num_experts, room)
        width = max(1, min(_WIDEST_CELL, room // len(columns)))
        yield Paragraph(style_words(self.title, Style.LABEL))
        for name, rows in lines:
            cells = merge_cells([row.cells for row in rows], columns, by=self.by)
            blocks = [self.scale.draw(cell, width) for cell in cells]
            yield Text.assemble(f"{name:>{label}} ", *blocks, no_wrap=True)
        last = f"E{num_experts - 1}"
        span = width * len(columns) - (width > _TOUCHING)
        if span > len(last) + 2:
            yield Text(f"{'':>{label}} E0{last:>{span - 2}}", style=Style.MUTED)
        yield Paragraph(self.scale.explain())
        words = self._explain_merging(max(len(rows) for _, rows in lines), columns)
        if words:
            yield Paragraph(style_words(words, Style.MUTED))

    def _list_lines(self) -> Iterator[tuple[str, Sequence[MapLayer]]]:
        """Yield the layers of each line, after its name."""
        for stack, group in groupby(self.layers, key=lambda layer: layer.stack):
            mine = list(group)
            most = max(1, _MOST_LINES * len(mine) // len(self.layers))
            for part in split_evenly(len(mine), most):
                rows = mine[part]
                name = f"{format_stack(stack)}L{rows[0].layer}"
                yield (name if len(rows) == 1 else f"{name}–{rows[-1].layer}"), rows

    def _explain_merging(self, num_layers: int, columns: Sequence[slice]) -> str:
        num_experts = columns[0].stop - columns[0].start
        if num_layers == num_experts == 1:
            return ""
        what = "mean" if self.by == "mean" else "largest"
        parts = " × ".join(
            number_of(number, noun)
            for number, noun in ((num_layers, "layer"), (num_experts, "expert"))
            if number > 1
        )
        return f"a block: the {what} of {parts}"


def suits_map(view: View) -> bool:
    """Return whether a map suits a view: a terminal with colour that is wide enough."""
    return view.has_color and view.width is not None and view.width >= _NARROWEST
