"""Draw how evenly the experts of each layer share the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.analysis.balance.result import Balance
from moetool.report.figures.spreads import draw_spreads
from moetool.report.figures.style import (
    COLUMN_WIDTH_IN,
    draw_ratios,
    name_layers,
    put_legend,
    start_figure,
    thin_out,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_load(result: Balance, *, width_in: float = COLUMN_WIDTH_IN) -> Figure:
    """Return a figure of the load of every expert in every layer.

    Above stands a map of each expert's load over the mean load of its layer; black is an expert
    that was never chosen. Below stand, for each layer, the percentiles of the same over experts,
    next to those of a uniform random router on as many tokens.

    Args:
        result: Of `measure_balance`.
        width_in: Width of the figure in inches.

    Raises:
        UsageError: matplotlib is not installed, or the width is out of range.
    """
    import numpy as np

    layers = result.layers
    most = max(layer.num_experts for layer in layers)
    over_mean = np.full((most, len(layers)), np.nan)
    place = {(layer.stack, layer.layer): index for index, layer in enumerate(layers)}
    experts = result.to_frame("experts")
    columns = [place[key] for key in zip(experts["stack"], experts["layer"], strict=True)]
    over_mean[experts["expert"], columns] = experts["over_mean"]
    with start_figure(width_in=width_in, height_in=3.6, rows=(1.2, 1), shares_x=True) as (
        figure,
        (map_axes, axes),
    ):
        draw_ratios(map_axes, over_mean, label="load / mean load")
        map_axes.set_ylabel("expert")
        thin_out(map_axes.yaxis, [str(expert) for expert in range(most)])
        draw_spreads(
            axes,
            [layer.percentiles for layer in layers],
            [layer.baseline.percentiles for layer in layers],
            ends=("p0", "p100"),
            width_in=width_in,
        )
        axes.set_ylim(bottom=0)
        axes.set_ylabel("load / mean load")
        axes.set_xlabel("layer")
        name_layers(axes.xaxis, layers)
        put_legend(figure, [map_axes, axes])
    return figure
