"""Draw which experts of a layer are chosen together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.analysis.coactivation.result import Coactivation, LayerCoactivation
from moetool.errors import InputError, UsageError
from moetool.report.figures.style import (
    BLUE,
    COLUMN_WIDTH_IN,
    RANDOM,
    draw_ratios,
    find_end,
    name_layer,
    name_layers,
    put_legend,
    scale_ratios,
    start_figure,
    thin_out,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_coactivation(
    result: Coactivation, *, layer: int | None = None, width_in: float = COLUMN_WIDTH_IN
) -> Figure:
    """Return a figure of the experts that decisions choose together.

    Above stands a map of the lift of every pair of one layer, whose white is a uniform random
    router; its lift is below 1, because the experts of a decision exclude each other. Below stands
    the strongest pair of each layer with the 95 % interval of its lift, next to the strongest pair
    that a random router would show on as many decisions.

    Args:
        result: Of `measure_coactivation`.
        layer: Number of the layer in the map; None for the one with the most pairs above what their
            loads explain.
        width_in: Width of the figure in inches.

    Raises:
        InputError: No decision chooses two experts.
        UsageError: matplotlib is not installed, the width is out of range, or there is no such
            layer.
    """
    paired = [each for each in result.layers if each.baseline is not None]
    if not paired:
        raise InputError(
            "No decision of the trace chooses two experts: there are no pairs.",
            hint="Draw another figure, such as load or domains.",
        )
    shown = _choose_layer(paired, layer)
    with start_figure(width_in=width_in, height_in=4.3, rows=(1.7, 1)) as (
        figure,
        (above, below),
    ):
        _draw_map(above, shown)
        _draw_strongest(below, paired)
        put_legend(figure, [above, below])
    return figure


def _choose_layer(layers: Sequence[LayerCoactivation], layer: int | None) -> LayerCoactivation:
    if layer is None:
        return max(layers, key=lambda each: each.num_above)
    found = next((each for each in layers if each.layer == layer), None)
    if found is None:
        raise UsageError(
            f"The result has no layer {layer} with pairs of experts.",
            hint="Choose one of its layers, or leave it out.",
        )
    return found


def _draw_map(axes: Axes, shown: LayerCoactivation) -> None:
    import numpy as np

    assert shown.baseline is not None
    lift = np.full((shown.num_experts, shown.num_experts), np.nan)
    matrix = shown.matrix
    lift[matrix.expert_i, matrix.expert_j] = matrix.lift
    lift[matrix.expert_j, matrix.expert_i] = matrix.lift
    draw_ratios(axes, lift, label="lift", never="never together", center=shown.baseline.lift)
    axes.set_aspect("equal")
    names = [str(expert) for expert in range(shown.num_experts)]
    thin_out(axes.xaxis, names)
    thin_out(axes.yaxis, names)
    axes.set_xlabel(f"expert of {name_layer(shown)}")
    axes.set_ylabel(f"expert of {name_layer(shown)}")


def _draw_strongest(axes: Axes, layers: Sequence[LayerCoactivation]) -> None:
    strongest = [each.pairs[0] if each.pairs else None for each in layers]
    known = [(place, pair) for place, pair in enumerate(strongest) if pair is not None]
    intervals = [
        (place, pair.lift_low, pair.lift_high)
        for place, pair in known
        if pair.lift_low is not None and pair.lift_high is not None
    ]
    axes.vlines(
        [place for place, _, _ in intervals],
        [low for _, low, _ in intervals],
        [high for _, _, high in intervals],
        color=BLUE,
        linewidth=1.0,
        label="95 % interval",
    )
    axes.plot(
        [place for place, _ in known],
        [pair.lift for _, pair in known],
        "o",
        color=BLUE,
        label="strongest pair",
    )
    random = [
        (place, each.baseline.strongest_lift)
        for place, each in enumerate(layers)
        if each.baseline is not None and each.baseline.strongest_lift is not None
    ]
    axes.plot(
        [edge for place, _ in random for edge in (place - 0.5, place + 0.5)],
        [lift for _, lift in random for _ in range(2)],
        **RANDOM,
        label="strongest of a random router",
    )
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_yscale("log")
    lifts = [lift for _, lift in random] + [pair.lift for _, pair in known]
    tops = [pair.lift_high or pair.lift for _, pair in known]
    low, high = min([0.5, *lifts]), find_end(lifts, tops)
    scale_ratios(axes.yaxis, least=low, most=high, most_ticks=4)
    axes.set_ylim(low / 1.2, high * 1.2)
    name_layers(axes.xaxis, layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("lift")
