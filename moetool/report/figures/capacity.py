"""Draw the share of assignments that experts of limited capacity would drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.analysis.balance.capacity.result import CapacityShare
from moetool.analysis.balance.result import Balance
from moetool.errors import InputError
from moetool.report.figures.style import (
    AMBER,
    BLUE,
    COLUMN_WIDTH_IN,
    GREEN,
    RANDOM,
    SKY,
    put_legend,
    start_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PERCENT = 100
# At which the places of dropped assignments are shown: the usual one of training.
_FACTOR = 1.25
_FIRST_COME, _LARGEST = "position", "probability"
_DECILES = range(1, 11)


def draw_capacity(result: Balance, *, width_in: float = COLUMN_WIDTH_IN) -> Figure:
    """Return a figure of the assignments that experts of limited capacity would drop.

    Above stands the share of assignments that is dropped at each capacity factor, over all layers
    and in each layer. Below stands the same at a factor of 1.25 by the place of the token in its
    batch, if the first tokens or the largest weights come first; a load table doesn't have it.
    The lines are a uniform random router.

    Args:
        result: Of `measure_balance`.
        width_in: Width of the figure in inches.

    Raises:
        InputError: The batches are unknown.
        UsageError: matplotlib is not installed, or the width is out of range.
    """
    shares = [each for each in result.capacity if each.dropped_share is not None]
    if not shares:
        raise InputError(
            "The batches of these loads are unknown, and so is what they would drop.",
            hint="Give a trace, or a load table with the loads of each step.",
        )
    placed = [each for each in shares if each.factor == _FACTOR and each.by_position is not None]
    rows = (1.2, 1.0) if placed else (1.0,)
    height_in = 3.7 if placed else 2.2
    with start_figure(width_in=width_in, height_in=height_in, rows=rows) as (figure, panels):
        _draw_factors(panels[0], result, shares)
        if placed:
            _draw_places(panels[1], placed)
        put_legend(figure, panels)
    return figure


def _draw_factors(axes: Axes, result: Balance, shares: Sequence[CapacityShare]) -> None:
    first = [each for each in shares if each.policy == shares[0].policy]
    for number, layer in enumerate(result.layers):
        known = [each for each in layer.dropped if each.share is not None]
        axes.plot(
            [each.factor for each in known],
            [(each.share or 0) * _PERCENT for each in known],
            color=SKY,
            linewidth=0.5,
            alpha=0.6,
            label=None if number else "each layer",
        )
    factors = [each.factor for each in first]
    axes.plot(
        factors,
        [(each.dropped_share or 0) * _PERCENT for each in first],
        color=BLUE,
        marker="o",
        label="all layers",
    )
    random = [
        (each.factor, each.baseline.dropped_share)
        for each in first
        if each.baseline.dropped_share is not None
    ]
    axes.plot(
        [factor for factor, _ in random],
        [share * _PERCENT for _, share in random],
        **RANDOM,
        marker="D",
        label="random router",
    )
    axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("capacity factor")
    axes.set_ylabel("dropped assignments (%)")


def _draw_places(axes: Axes, placed: Sequence[CapacityShare]) -> None:
    looks = {
        _FIRST_COME: (GREEN, "^", "first tokens first"),
        _LARGEST: (AMBER, "s", "largest weights first"),
    }
    for each in placed:
        color, marker, label = looks[each.policy]
        at, values = _know(each.by_position or ())
        axes.plot(at, values, color=color, marker=marker, label=label)
    for each in placed:
        if each.policy == _FIRST_COME:
            axes.plot(*_know(each.baseline.by_position), **RANDOM, label="random router")
    axes.set_xticks(list(_DECILES))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("place in the batch (tenths)")
    axes.set_ylabel(f"dropped (%)\nat a factor of {_FACTOR:g}")


def _know(by_position: Sequence[float | None]) -> tuple[list[int], list[float]]:
    known = [
        (place, share * _PERCENT)
        for place, share in zip(_DECILES, by_position, strict=False)
        if share is not None
    ]
    return [place for place, _ in known], [share for _, share in known]
