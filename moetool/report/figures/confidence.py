"""Draw how much of a decision's weight the first choice has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from moetool.analysis.confidence.result import Confidence, Distribution
from moetool.report.figures.spreads import draw_spreads
from moetool.report.figures.style import (
    COLUMN_WIDTH_IN,
    RANDOM,
    name_layers,
    put_legend,
    start_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_confidence(result: Confidence, *, width_in: float = COLUMN_WIDTH_IN) -> Figure:
    """Return a figure of the first choice's weight in the decisions of every layer.

    Where the weights of a decision don't add up to 1, there are two panels: the weight, and its
    share of the decision's weights. The line is a router that gives all chosen experts the same
    weight.

    Args:
        result: Of `measure_confidence`.
        width_in: Width of the figure in inches.

    Raises:
        UsageError: matplotlib is not installed, or the width is out of range.
    """
    layers = result.layers
    is_one_panel = all(layer.is_normalized is not False for layer in layers)
    rows = (1.0,) if is_one_panel else (1.0, 1.0)
    height_in = 2.2 if is_one_panel else 3.5
    with start_figure(width_in=width_in, height_in=height_in, rows=rows, shares_x=True) as (
        figure,
        panels,
    ):
        equal = [layer.baseline for layer in layers]
        _draw(
            panels[-1],
            [layer.share for layer in layers],
            [None if each is None else each.share for each in equal],
            width_in=width_in,
        )
        panels[-1].set_ylabel("first choice's share\nof a decision's weights")
        if not is_one_panel:
            _draw(
                panels[0],
                [layer.weight for layer in layers],
                [None if each is None else each.weight for each in equal],
                width_in=width_in,
            )
            panels[0].set_ylabel("weight of the\nfirst choice")
        for axes in panels:
            axes.set_ylim(bottom=0)
        panels[-1].set_ylim(top=1.02)
        panels[-1].set_xlabel("layer")
        name_layers(panels[-1].xaxis, layers)
        put_legend(figure, panels)
    return figure


def _draw(
    axes: Axes,
    spreads: Sequence[Distribution | None],
    equal: Sequence[float | None],
    *,
    width_in: float,
) -> None:
    draw_spreads(
        axes,
        [None if each is None else asdict(each) for each in spreads],
        ends=("p5", "p95"),
        width_in=width_in,
    )
    known = [(place, value) for place, value in enumerate(equal) if value is not None]
    axes.plot(
        [edge for place, _ in known for edge in (place - 0.5, place + 0.5)],
        [value for _, value in known for _ in range(2)],
        **RANDOM,
        label="equal weights",
    )
