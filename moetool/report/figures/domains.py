"""Draw which experts each domain uses more than all domains together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.result import (
    DomainExpertTest,
    LayerSpecialization,
    Specialization,
    is_small,
)
from moetool.report.figures.specialization import choose_layer, take_by_domain
from moetool.report.figures.style import (
    BLUE,
    COLUMN_WIDTH_IN,
    RANDOM,
    draw_ratios,
    find_end,
    name_layer,
    put_legend,
    say,
    scale_ratios,
    start_figure,
    thin_out,
)
from moetool.report.text.numbers import format_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Rows of the map and of the list below it.
_MOST_DOMAINS, _MOST_EXPERTS = 40, 24
_EXPERTS_OF_A_DOMAIN = 3
_ROW_IN, _LEAST_IN = 0.125, 0.9
# Axes, labels and the legend.
_MAP_EXTRA_IN, _LIST_EXTRA_IN = 0.5, 0.75
_FADED = 0.3
# Letters of a domain, and numbers of the axis next to it.
_LONGEST_NAME = 14
_MOST_TICKS, _THREE_DIGITS = 4, 100


def draw_domains(
    result: Specialization | TokenSpecialization,
    *,
    layer: int | None = None,
    width_in: float = COLUMN_WIDTH_IN,
) -> Figure:
    """Return a figure of the lift of domains and experts.

    Above stands a map of the experts of one layer: the domain's share of tokens that an expert
    gets, over the expert's share of all tokens. Lifts with a false discovery rate above 5 % are
    faded. Below stand the surest experts of each domain over all layers, with the 95 % intervals of
    their lifts. A random router has a lift of 1.

    Args:
        result: Of `measure_specialization`, by domain.
        layer: Number of the layer in the map; None for the one in which experts explain the most.
        width_in: Width of the figure in inches.

    Raises:
        UsageError: matplotlib is not installed, the width is out of range, there is no such layer,
            or the result is one by token.
    """
    result = take_by_domain(result)
    shown = choose_layer(result.layers, layer)
    by_size = sorted(result.domains, key=lambda each: (-each.tokens, each.domain))
    domains = [each.domain for each in by_size[:_MOST_DOMAINS]]
    cells = _choose_surest(result)
    map_in = max(_LEAST_IN, _ROW_IN * len(domains)) + _MAP_EXTRA_IN
    list_in = max(_LEAST_IN, _ROW_IN * len(cells)) + _LIST_EXTRA_IN
    with start_figure(width_in=width_in, height_in=map_in + list_in, rows=(map_in, list_in)) as (
        figure,
        (above, below),
    ):
        _draw_map(above, result, shown, sorted(domains))
        if len(domains) < len(result.domains):
            above.set_title(f"{len(domains)} of {len(result.domains)} domains")
        _draw_surest(below, cells, result)
        put_legend(figure, [above, below])
    return figure


def _draw_map(
    axes: Axes, result: Specialization, shown: LayerSpecialization, domains: Sequence[str]
) -> None:
    import numpy as np

    row = {domain: place for place, domain in enumerate(domains)}
    lift = np.full((len(domains), shown.num_experts), np.nan)
    alpha = np.full(lift.shape, _FADED)
    for cell in result.experts:
        if (cell.stack, cell.layer) == (shown.stack, shown.layer) and cell.domain in row:
            place = row[cell.domain], cell.expert
            lift[place] = np.nan if cell.lift is None else cell.lift
            alpha[place] = 1.0 if is_small(cell.q_value) else _FADED
    draw_ratios(axes, lift, label="lift", alpha=alpha)
    axes.set_yticks(range(len(domains)), [say(domain, most=_LONGEST_NAME) for domain in domains])
    axes.set_xlabel(f"expert of {name_layer(shown)} (faded: q > 5 %)")
    names = [str(expert) for expert in range(shown.num_experts)]
    thin_out(axes.xaxis, names, most=_MOST_TICKS if len(names) > _THREE_DIGITS else 2 * _MOST_TICKS)


def _choose_surest(result: Specialization) -> list[DomainExpertTest]:
    """Return the surest experts of each domain, domain by domain; of the surest if there are many."""
    groups = [list(cells) for cells in result.most_lifted.values() if cells]
    if not groups:
        return []
    each = max(1, min(_EXPERTS_OF_A_DOMAIN, _MOST_EXPERTS // len(groups)))
    surest = sorted(groups, key=lambda cells: -(cells[0].lift_low or 0))[:_MOST_EXPERTS]
    kept = sorted(surest, key=lambda cells: cells[0].domain)
    return [cell for cells in kept for cell in cells[:each]]


def _draw_surest(axes: Axes, cells: Sequence[DomainExpertTest], result: Specialization) -> None:
    names = [
        f"{say(cell.domain, most=_LONGEST_NAME)}  {format_place(cell.stack, cell.layer, cell.expert)}"
        for cell in cells
    ]
    lifts = [cell.lift or 0.0 for cell in cells]
    for place, (cell, lift) in enumerate(zip(cells, lifts, strict=True)):
        axes.plot(
            [cell.lift_low or lift, cell.lift_high or lift],
            [place, place],
            color=BLUE,
            linewidth=1.0,
            label=None if place else "95 % interval",
        )
    if cells:
        axes.plot(lifts, range(len(cells)), "o", color=BLUE, label="lift")
    axes.axvline(1, **RANDOM, label="random router")
    axes.set_xscale("log")
    highest = find_end(
        lifts, [cell.lift_high or lift for cell, lift in zip(cells, lifts, strict=True)]
    )
    scale_ratios(axes.xaxis, least=1, most=highest, most_ticks=_MOST_TICKS)
    axes.set_xlim(0.8, highest * 1.1)
    axes.set_ylim(max(0.5, len(cells) - 0.5), -0.5)
    axes.set_yticks(range(len(cells)), names)
    if cells:
        num_shown = len({cell.domain for cell in cells})
        part = f" ({num_shown} of {len(result.domains)} domains)"
        axes.set_xlabel(f"lift{part if num_shown < len(result.domains) else ''}")
    else:
        axes.set_xlabel("lift (no expert's interval is above 1)")
