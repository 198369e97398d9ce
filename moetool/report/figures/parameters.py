"""Draw a model's parameters by component, in total and for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moetool.errors import InputError
from moetool.report.figures.style import (
    AMBER,
    BLUE,
    COLUMN_WIDTH_IN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    put_legend,
    say,
    start_figure,
)
from moetool.wording import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moetool.anatomy.parameters import ActiveRange
    from moetool.inspection.figures import Parameters
    from moetool.inspection.result import Inspection

# By component, in the order of a bar. Hatching tells apart what shares a colour.
_LOOKS = {
    "routed_experts": (BLUE, ""),
    "shared_experts": (SKY, ""),
    "dense_mlp": (GREEN, ""),
    "mixer": (ORANGE, ""),
    "embedding": (AMBER, ""),
    "lm_head": (YELLOW, ""),
    "router": (INK, ""),
    "norm": (PINK, ""),
    "vision": (GREY, ""),
    "audio": (GREY, "////"),
    "other": ("white", "////"),
}
_BAR_IN, _EXTRA_IN = 0.22, 1.25
# Of a model's two bars and its name, in bars.
_STEP = 2.8
_ROOM_FOR_NUMBERS = 1.25
_BILLION, _MILLION = 10**9, 10**6
# Totals below this many are counted in millions.
_FEW = 10**9
# A value of `ActiveDefinition`, whose package reports don't import.
_ALL: Any = "all"


def draw_parameters(
    results: Inspection | Sequence[Inspection], *, width_in: float = COLUMN_WIDTH_IN
) -> Figure:
    """Return a figure of the parameters of one or several models by component.

    Each model has two bars: all parameters, and those that a text token runs. If tokens run
    different numbers, the second is the most that one runs.

    Args:
        results: Of `inspect_model`.
        width_in: Width of the figure in inches.

    Raises:
        InputError: The parameters of a model are unknown.
        UsageError: matplotlib is not installed, or the width is out of range.
    """
    models = list(results) if isinstance(results, Sequence) else [results]
    tables = []
    for model in models:
        if model.parameters is None or None in model.parameters.components.values():
            raise InputError(
                f"The parameters of {model.model} by component are unknown.",
                hint="Name a model whose configuration is public.",
            )
        tables.append((say(model.model), model.parameters))
    totals = [table.total or 0 for _, table in tables]
    unit, letter = (_MILLION, "millions") if max(totals) < _FEW else (_BILLION, "billions")
    height_in = _EXTRA_IN + _BAR_IN * _STEP * len(models)
    with start_figure(width_in=width_in, height_in=height_in) as (figure, (axes,)):
        for number, (name, table) in enumerate(tables):
            place = _STEP * number
            _draw_bar(axes, place, table.components, unit)
            _draw_bar(axes, place + 1, _list_active(table), unit)
            _write(axes, place, format_count(totals[number]), totals[number], unit)
            active = table.active[_ALL]
            if active is not None:
                _write(axes, place + 1, _word_range(active), active.most, unit)
            axes.annotate(
                name, (0, place - 0.75), xytext=(3, 0), textcoords="offset points", va="center"
            )
        places = [_STEP * number + each for number in range(len(tables)) for each in range(2)]
        axes.set_yticks(places, ["total", "active"] * len(tables))
        axes.set_ylim(places[-1] + 0.6, -1.0)
        axes.set_xlim(0, _ROOM_FOR_NUMBERS * max(totals) / unit)
        axes.set_xlabel(f"parameters ({letter})")
        put_legend(figure, [axes])
    return figure


def _list_active(table: Parameters) -> dict[str, int | None]:
    return {
        name: None if number is None else number.most
        for name, number in table.active_components.items()
    }


def _draw_bar(axes: Axes, place: float, components: Mapping[str, int | None], unit: int) -> None:
    start = 0.0
    _, labels = axes.get_legend_handles_labels()
    for name, (color, hatch) in _LOOKS.items():
        size = (components.get(name) or 0) / unit
        if not size:
            continue
        label = name.replace("_", " ")
        axes.barh(
            place,
            size,
            left=start,
            height=0.8,
            color=color,
            hatch=hatch,
            edgecolor=INK if hatch else color,
            linewidth=0,
            label=None if label in labels else label,
        )
        start += size


def _write(axes: Axes, place: float, words: str, number: int, unit: int) -> None:
    axes.annotate(
        words, (number / unit, place), xytext=(3, 0), textcoords="offset points", va="center"
    )


def _word_range(active: ActiveRange) -> str:
    most = format_count(active.most)
    return most if active.exact is not None else f"{format_count(active.fewest)} to {most}"
