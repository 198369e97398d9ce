"""Draw distributions of a figure next to each other, one for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moetool.report.figures.style import BLUE, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Percentiles = Mapping[str, float] | None

# Of the points that a layer has for its bar.
_THICKEST_PT, _SHARE_OF_PLACE = 5.0, 0.55
_PT_PER_IN = 72


def draw_spreads(
    axes: Axes,
    spreads: Sequence[Percentiles],
    randoms: Sequence[Percentiles] = (),
    *,
    ends: tuple[str, str],
    width_in: float,
) -> None:
    """Draw a bar for each place of an axis: half of the values thick, all of them thin.

    Args:
        axes: The panel.
        spreads: Percentiles by name, for each place; None where they are unknown.
        randoms: Those of a random router in the same form, drawn as a band behind.
        ends: The names of the percentiles where a thin bar ends.
        width_in: Of the figure.
    """
    low, high = ends
    known = [place for place, spread in enumerate(spreads) if spread is not None]

    def take(name: str, values: Sequence[Any] = spreads) -> list[float]:
        return [values[place][name] for place in known]

    if randoms:
        at, lows, highs = [], [], []
        for place in known:
            random = randoms[place]
            if random is not None:
                # A step as wide as the place, so that a single layer has a band too.
                at += [place - 0.5, place + 0.5]
                lows += [random[low]] * 2
                highs += [random[high]] * 2
        axes.fill_between(
            at, lows, highs, color=GREY, alpha=0.35, linewidth=0, label="random router: all experts"
        )
    room_pt = _PT_PER_IN * 0.7 * width_in / max(1, len(spreads))
    thick = min(_THICKEST_PT, _SHARE_OF_PLACE * room_pt)
    axes.vlines(
        known, take(low), take(high), color=BLUE, linewidth=thick / 4, label=_name_ends(ends)
    )
    axes.vlines(known, take("p25"), take("p75"), color=BLUE, linewidth=thick, label="middle half")
    axes.plot(
        known,
        take("p50"),
        linestyle="none",
        marker="o",
        markersize=max(1.2, 0.6 * thick),
        color="white",
        markeredgecolor=BLUE,
        markeredgewidth=0.5,
        label="median",
    )
    axes.set_xlim(-0.5, len(spreads) - 0.5)


def _name_ends(ends: tuple[str, str]) -> str:
    low, high = (int(name[1:]) for name in ends)
    return "least to most" if (low, high) == (0, 100) else f"middle {high - low} %"
