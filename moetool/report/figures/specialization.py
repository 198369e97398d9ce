"""Draw how much the choice of experts depends on the domain, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.result import LayerSpecialization, Specialization, is_small
from moetool.errors import UsageError
from moetool.report.figures.style import (
    BLUE,
    COLUMN_WIDTH_IN,
    GREY,
    INK,
    ORANGE,
    RANDOM,
    name_layers,
    put_legend,
    say,
    start_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PERCENT = 100


def draw_specialization(
    result: Specialization | TokenSpecialization, *, width_in: float = COLUMN_WIDTH_IN
) -> Figure:
    """Return a figure of the information between expert and domain in every layer.

    Above stands the mutual information in nats, with its mean over permutations of the prompts'
    labels and that of a uniform random router. Below stands the excess over permuted labels as a
    share of the domains' entropy, and the same among tokens whose id occurs in several domains,
    given the token. Filled markers have a false discovery rate of at most 5 % over the layers.

    Args:
        result: Of `measure_specialization`, by domain.
        width_in: Width of the figure in inches.

    Raises:
        UsageError: matplotlib is not installed, the width is out of range, or the result is one
            by token.
    """
    result = take_by_domain(result)
    layers = result.layers
    group = say(result.by)
    with start_figure(width_in=width_in, height_in=3.5, rows=(1, 1.1), shares_x=True) as (
        figure,
        (above, below),
    ):
        observed = [layer.mutual_information_nats for layer in layers]
        above.plot(*_know(observed), color=BLUE, marker="o", label="observed")
        above.plot(
            *_know([layer.null_nats for layer in layers]),
            color=INK,
            linestyle=":",
            marker=".",
            label="labels permuted",
        )
        above.plot(
            *_know(
                [
                    layer.baseline.mutual_information_nats if layer.baseline else None
                    for layer in layers
                ]
            ),
            **RANDOM,
            marker="_",
            label="random router",
        )
        above.set_ylabel("mutual\ninformation (nats)")
        _set_bottom(above)
        below.axhline(0, **{**RANDOM, "linestyle": "-"}, label="0: as by chance")
        _draw_shares(
            below,
            [layer.normalized for layer in layers],
            [layer.q_value for layer in layers],
            color=BLUE,
            marker="o",
            label=f"of H({group})",
        )
        _draw_shares(
            below,
            [layer.conditional_normalized for layer in layers],
            [layer.conditional_q_value for layer in layers],
            color=ORANGE,
            marker="s",
            label=f"of H({group} | token id)",
        )
        below.set_ylabel("explained (%)")
        below.set_xlabel("layer")
        below.set_xlim(-0.5, len(layers) - 0.5)
        name_layers(below.xaxis, layers)
        below.plot([], [], "o", color=GREY, markerfacecolor="white", label="q > 5 %")
        put_legend(figure, [above, below])
    return figure


def _draw_shares(
    axes: Axes,
    shares: Sequence[float | None],
    q_values: Sequence[float | None],
    *,
    color: str,
    marker: str,
    label: str,
) -> None:
    at, values = _know([None if each is None else each * _PERCENT for each in shares])
    if not at:
        return
    axes.plot(at, values, color=color, linewidth=0.8, marker=marker, label=label)
    hollow = [place for place in at if not is_small(q_values[place])]
    axes.plot(
        hollow,
        [values[at.index(place)] for place in hollow],
        linestyle="none",
        color=color,
        marker=marker,
        markerfacecolor="white",
    )


def _know(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Return the places of known values, and the values."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    return [place for place, _ in known], [value for _, value in known]


def _set_bottom(axes: Axes) -> None:
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def take_by_domain(result: Specialization | TokenSpecialization) -> Specialization:
    """Return the result of a specialization by domain.

    Raises:
        UsageError: It is one by token.
    """
    if not isinstance(result, Specialization):
        raise UsageError(
            "Specialization by token has no figure.",
            hint="Group by domain, or by another column with a value for each prompt.",
        )
    return result


def choose_layer(layers: Sequence[LayerSpecialization], layer: int | None) -> LayerSpecialization:
    """Return the layer to show: the one of that number, or the one that explains the most.

    Raises:
        UsageError: There is no such layer.
    """
    if layer is None:
        return max(layers, key=lambda each: each.normalized or 0.0)
    found = next((each for each in layers if each.layer == layer), None)
    if found is None:
        raise UsageError(
            f"The result has no layer {layer}.", hint="Choose one of its layers, or leave it out."
        )
    return found
