"""Give all figures one look: fonts, colours that colour-blind people can tell apart, axes.

Colours are those of Okabe and Ito (2008). A scale of ratios goes from blue through white at 1 to
orange, in equal steps of the logarithm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from moetool.errors import UsageError
from moetool.printable import printable
from moetool.report.figures.files import find_figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# A column of a page with two columns, in inches.
COLUMN_WIDTH_IN = 3.3
NARROWEST_IN, WIDEST_IN = 3.0, 20.0

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SKY, AMBER, PINK, YELLOW = "#56B4E9", "#E69F00", "#CC79A7", "#F0E442"
GREY, INK = "#8C8C8C", "#1A1A1A"
_NOTHING = "#D4D4D4"
# A random router is the same in every figure.
RANDOM: dict[str, Any] = {"color": GREY, "linestyle": (0, (3, 1.5)), "linewidth": 1.0}
_RATIOS = ("#003A5C", BLUE, "#8FC1DE", "#F7F7F7", "#F3B38A", ORANGE, "#6E2F00")

# With more, matplotlib would store the bar of the scale as pixels.
_NUM_SHADES = 48

_TEXT_PT, _TITLE_PT = 7, 8
_LOOK: Any = {
    "font.family": "DejaVu Sans",
    "font.size": _TEXT_PT,
    "axes.titlesize": _TITLE_PT,
    "axes.titlelocation": "left",
    "axes.labelsize": _TEXT_PT,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": _TEXT_PT,
    "ytick.labelsize": _TEXT_PT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.fontsize": _TEXT_PT,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
_TICKS = 8
# Of an entry of a legend: what stands before the words, and the usual width of a letter.
_HANDLE_PT, _LETTER_PT, _PT_PER_IN = 27.0, 3.9, 72
# Cells beyond which a map is stored as pixels: as many shapes make a slow file.
_MOST_SHAPES = 4_000
_PIXELS_PER_INCH = 600
# Of a scale of ratios: it ends at a power of 2, which this share of the cells is below.
_LEAST_REACH, _MOST_REACH = 2.0, 8.0
_INSIDE = 0.98
# Of an axis of ratios.
_LEAST_END, _BEYOND, _MOST_POWER = 2.0, 30.0, 12


class _OfALayer(Protocol):
    @property
    def stack(self) -> str: ...
    @property
    def layer(self) -> int: ...


def check_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401, ICN001
    except ImportError as error:
        raise UsageError(
            "Figures need matplotlib, which is not installed.",
            hint='Run: pip install "moetool[plots]"',
        ) from error


def check_width(width_in: float) -> None:
    """Check that a figure can have a width.

    Raises:
        UsageError: It is out of range.
    """
    if not NARROWEST_IN <= width_in <= WIDEST_IN:
        raise UsageError(
            f"A figure can't be {width_in:g} inches wide.",
            hint=f"Give a width from {NARROWEST_IN:g} to {WIDEST_IN:g} inches.",
        )


@contextmanager
def start_figure(
    *, width_in: float, height_in: float, rows: Sequence[float] = (1,), shares_x: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure with panels below each other, in the look of all figures.

    Args:
        width_in: Width in inches.
        height_in: Height in inches.
        rows: Relative heights of the panels.
        shares_x: Whether the panels have the same horizontal axis.

    Raises:
        UsageError: matplotlib is not installed, or the width is out of range.
    """
    check_matplotlib()
    check_width(width_in)
    import matplotlib as mpl

    with mpl.rc_context(_LOOK):
        figure = find_figure_class()(
            figsize=(width_in, height_in), dpi=_PIXELS_PER_INCH, layout="constrained"
        )
        panels = figure.subplots(
            len(rows), 1, squeeze=False, sharex=shares_x, height_ratios=list(rows)
        )
        yield figure, panels[:, 0].tolist()


def say(words: str, *, most: int = 24) -> str:
    """Return words of a trace for a figure: on one line, short, and not read as a formula."""
    return printable(words, max_length=most).replace("$", r"\$")


def put_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend of all panels below a figure, in as many columns as its width has room for."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=_choose_columns(list(handles), figure.get_size_inches()[0] * _PT_PER_IN),
    )


def _choose_columns(labels: Sequence[str], width_pt: float) -> int:
    """Return the most columns of a legend that a width has room for; it is filled column by column."""
    for number in range(min(len(labels), 4), 1, -1):
        rows, longer = divmod(len(labels), number)
        ends = [(each + 1) * rows + min(each + 1, longer) for each in range(number)]
        columns = [labels[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        widest = (max(map(len, column)) for column in columns)
        if sum(_HANDLE_PT + _LETTER_PT * length for length in widest) <= width_pt:
            return number
    return 1


def name_layer(layer: _OfALayer) -> str:
    """Return the name of a layer: `layer 3`, after its stack unless that is the decoder."""
    stack = "" if layer.stack == "decoder" else f"{say(layer.stack, most=8)} "
    return f"{stack}layer {layer.layer}"


def name_layers(axis: Axis, layers: Sequence[_OfALayer]) -> None:
    """Number the places of an axis by the layers that stand there, at most eight of them."""
    has_stacks = any(each.stack != "decoder" for each in layers)
    names = [
        f"{say(each.stack, most=8)} {each.layer}" if has_stacks else str(each.layer)
        for each in layers
    ]
    thin_out(axis, names, most=_TICKS // 2 if has_stacks else _TICKS)


def thin_out(axis: Axis, names: Sequence[str], *, most: int = _TICKS) -> None:
    """Put names at the places 0, 1, 2, … of an axis: all of them, or one in 2, 5, 10 and so on."""
    step = next(step for step in _list_steps() if step * most >= len(names))
    places = range(0, len(names), step)
    axis.set_ticks(list(places), [names[place] for place in places])


def _list_steps() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def draw_ratios(
    axes: Axes,
    values: Any,
    *,
    label: str,
    never: str = "never chosen",
    alpha: Any = None,
    center: float = 1.0,
) -> None:
    """Draw a map of ratios, on a scale with equal steps of the logarithm around a center.

    Cells with a ratio of 0 are black, and have an entry in the legend.

    Args:
        axes: The panel.
        values: # (num_rows, num_columns), NaN where there is nothing.
        label: Of the scale.
        never: Meaning of a ratio of 0.
        alpha: Opacity of each cell, in the shape of the values; None for all opaque.
        center: The ratio that is white.
    """
    import numpy as np
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.ticker import NullLocator

    rows, columns = values.shape
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    is_raster = values.size > _MOST_SHAPES
    is_known = values > 0  # NaN is not
    reach = _choose_reach(values[is_known] / center)
    mesh = axes.pcolormesh(
        *edges,
        np.ma.masked_where(~is_known, values),
        cmap=_make_ratio_map(),
        norm=LogNorm(center / reach, center * reach),
        alpha=alpha,
        rasterized=is_raster,
    )
    is_never = values == 0
    if is_never.any():
        black = ListedColormap([INK])
        zeros = np.ma.masked_where(~is_never, values)
        axes.pcolormesh(*edges, zeros, cmap=black, alpha=alpha, rasterized=is_raster)
        axes.fill_between([], [], [], color=INK, linewidth=0, label=never)
    if alpha is None:
        # The background: of an expert and itself, or of an expert that a layer lacks.
        axes.set_facecolor(_NOTHING)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    bar = axes.figure.colorbar(mesh, ax=axes, extend="both", fraction=0.06, pad=0.02, aspect=18)
    bar.outline.set_linewidth(0.4)
    middle = "1×" if center == 1 else f"{center:.2f}×"
    names = (f"{center / reach:.2g}×", middle, f"{center * reach:.2g}×")
    bar.set_ticks([center / reach, center, center * reach], labels=names)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(label)


def find_end(lifts: Sequence[float], limits: Sequence[float]) -> float:
    """Return the end of an axis of lifts and the upper limits of their intervals.

    A limit far beyond the largest lift says that little is known, and would leave no room for what
    is: its interval goes on beyond the axis.
    """
    most = max([_LEAST_END, *lifts])
    return min(max([most, *limits]), most * _BEYOND)


def scale_ratios(axis: Axis, *, least: float, most: float, most_ticks: int) -> None:
    """Number a logarithmic axis of ratios, so that the numbers don't touch."""
    from matplotlib.ticker import FixedLocator, NullLocator

    powers = range(-_MOST_POWER, _MOST_POWER)
    ticks = [leading * 10.0**power for power in powers for leading in (1, 2, 5)]
    ticks = [tick for tick in ticks if least <= tick <= most]
    if len(ticks) > most_ticks:
        ticks = [10.0**power for power in powers if least <= 10.0**power <= most]
        ticks = ticks[:: -(-len(ticks) // most_ticks)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter("{x:g}×")
    axis.set_minor_locator(NullLocator())


def _choose_reach(over_center: Any) -> float:
    """Return how far from its center a scale goes: a power of 2 that most large cells are within."""
    import numpy as np

    if not over_center.size:
        return _LEAST_REACH
    far = np.ceil(np.log2(np.quantile(over_center, _INSIDE)))
    return float(np.clip(2.0**far, _LEAST_REACH, _MOST_REACH))


def _make_ratio_map() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("moetool_ratios", _RATIOS, N=_NUM_SHADES)
