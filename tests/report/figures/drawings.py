"""Read back what a figure shows: its texts with their places, and the data of its artists."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

# Of a box around letters that touch their neighbour's, in pixels at 600 dpi.
_SLACK = 1.0


def list_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return the texts that are drawn, and their boxes in pixels."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer = canvas.get_renderer()
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in _iter_texts(figure)
        if text.get_visible() and text.get_text()
    ]


def _iter_texts(figure: Figure) -> Iterator[Text]:
    for axes in figure.axes:
        yield from axes.texts
        yield from (axes.title, axes._left_title, axes._right_title)  # type: ignore[attr-defined]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            yield from (axis.label, axis.offsetText)
            for tick in axis.get_major_ticks():
                if low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    yield from (tick.label1, tick.label2)
    for legend in figure.legends:
        yield from legend.get_texts()


def list_faults(figure: Figure) -> list[str]:
    """Return which texts are cut off, and which overlap."""
    texts = list_texts(figure)
    width, height = figure.bbox.width, figure.bbox.height
    faults = [
        f"'{words}' is cut off"
        for words, box in texts
        if min(box.x0, box.y0) < -_SLACK or box.x1 > width + _SLACK or box.y1 > height + _SLACK
    ]
    for number, (words, one) in enumerate(texts):
        for other_words, other in texts[number + 1 :]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            along = min(one.y1, other.y1) - max(one.y0, other.y0)
            if across > _SLACK and along > _SLACK:
                faults.append(f"'{words}' overlaps '{other_words}'")
    return faults


def find_panel(figure: Figure, label: str) -> Axes:
    """Return the panel whose vertical or horizontal axis has a label."""
    (found,) = (each for each in figure.axes if label in (each.get_ylabel(), each.get_xlabel()))
    return found


def read_line(axes: Axes, label: str) -> list[tuple[float, float]]:
    """Return the points of the line with a label."""
    (found,) = (each for each in axes.get_lines() if each.get_label() == label)
    return read_points(found)


def read_points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(*(np.asarray(each).tolist() for each in line.get_data()), strict=True))


def read_bars(axes: Axes, label: str) -> list[tuple[float, float, float]]:
    """Return the place, the lower and the upper end of vertical lines with a label."""
    (found,) = (
        each
        for each in axes.collections
        if isinstance(each, LineCollection) and each.get_label() == label
    )
    return [
        (float(low[0]), float(low[1]), float(high[1]))
        for low, high in (np.asarray(each) for each in found.get_segments())
    ]


def read_map(axes: Axes) -> NDArray[np.float64]:
    """Return the cells of a panel's map, NaN where there is nothing, 0 for never."""
    meshes = [each for each in axes.collections if isinstance(each, QuadMesh)]
    cells: NDArray[np.float64] = np.ma.filled(np.ma.asarray(meshes[0].get_array()), np.nan)
    for zeros in meshes[1:]:
        mask = np.ma.getmaskarray(np.ma.asarray(zeros.get_array()))
        cells = np.where(mask, cells, 0.0)
    return np.asarray(cells, dtype=np.float64)
