"""Draw the memory of runs over batch size and prompt length, next to what a GPU has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.errors import InputError, UsageError
from moetool.report.figures.style import COLUMN_WIDTH_IN, INK, put_legend, say, start_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moetool.memory.result import Estimate

_GIB = 2**30
_MARKERS = "osD^vP*X"
_HEIGHT_IN = 2.6
# Ends of a colour scale that are hard to see on white.
_DARKEST, _LIGHTEST = 0.05, 0.8


def draw_memory(
    estimates: Estimate | Sequence[Estimate], *, width_in: float = COLUMN_WIDTH_IN
) -> Figure:
    """Return a figure of the device memory of several scenarios of one model.

    There is a line for each batch size, over the tokens of a prompt. Filled markers fit on the GPU,
    hollow ones don't; the dashed line is the memory that the GPU has.

    Args:
        estimates: Of `estimate_memory`, for scenarios that differ in sizes alone.
        width_in: Width of the figure in inches.

    Raises:
        InputError: No estimate's total is known.
        UsageError: matplotlib is not installed, the width is out of range, or the estimates are of
            several models or GPUs, or of a GGUF file.
    """
    given = list(estimates) if isinstance(estimates, Sequence) else [estimates]
    if any(not hasattr(each, "scenario") for each in given):
        raise UsageError(
            "A figure of memory is over prompts and batches, and a GGUF file has a context.",
            hint="Give the estimates of the original checkpoint.",
        )
    if len({(each.model, each.gpu) for each in given}) != 1:
        raise UsageError(
            "A figure of memory is of one model on one GPU.",
            hint="Give the estimates of one model, for one GPU.",
        )
    known = [each for each in given if each.total_device_bytes is not None]
    if not known:
        raise InputError(
            f"The memory of {given[0].model} is unknown.",
            hint="Run moetool memory-estimate to see why.",
        )
    with start_figure(width_in=width_in, height_in=_HEIGHT_IN) as (figure, (axes,)):
        batches = sorted({each.scenario.batch_size for each in known})
        for number, batch_size in enumerate(batches):
            mine = {
                each.scenario.num_prompt_tokens: each
                for each in known
                if each.scenario.batch_size == batch_size
            }
            _draw_line(
                axes,
                [mine[tokens] for tokens in sorted(mine)],
                number,
                len(batches),
                label=f"batch of {batch_size:,}",
            )
        _draw_limit(axes, known[0])
        _draw_axes(axes, known)
        put_legend(figure, [axes])
    return figure


def _draw_line(
    axes: Axes, estimates: Sequence[Estimate], number: int, num_lines: int, *, label: str
) -> None:
    import matplotlib as mpl

    step = (_LIGHTEST - _DARKEST) / max(1, num_lines - 1)
    color = mpl.colormaps["viridis"](_DARKEST + number * step)
    tokens = [each.scenario.num_prompt_tokens for each in estimates]
    sizes = [(each.total_device_bytes or 0) / _GIB for each in estimates]
    marker = _MARKERS[number % len(_MARKERS)]
    axes.plot(tokens, sizes, color=color, marker=marker, label=label)
    outside = [place for place, each in enumerate(estimates) if each.does_fit is False]
    axes.plot(
        [tokens[place] for place in outside],
        [sizes[place] for place in outside],
        linestyle="none",
        color=color,
        marker=marker,
        markerfacecolor="white",
    )


def _draw_limit(axes: Axes, estimate: Estimate) -> None:
    if estimate.fit is not None:
        axes.axhline(
            estimate.fit.memory_bytes / _GIB,
            color=INK,
            linestyle="--",
            linewidth=0.9,
            label=f"memory of {say(estimate.fit.gpu)}",
        )
    if estimate.weights_bytes is not None:
        axes.axhline(
            estimate.weights_bytes / _GIB,
            color=INK,
            linestyle=":",
            linewidth=0.9,
            label="weights alone",
        )


def _draw_axes(axes: Axes, estimates: Sequence[Estimate]) -> None:
    from matplotlib.ticker import NullLocator

    scenario = estimates[0].scenario
    tokens = sorted({each.scenario.num_prompt_tokens for each in estimates})
    axes.set_xscale("log", base=2)
    axes.set_xticks(_space(tokens), [f"{number:,}" for number in _space(tokens)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    new = f", {scenario.num_new_tokens:,} new" if scenario.num_new_tokens else ""
    axes.set_xlabel(f"prompt tokens of each sequence{new}")
    axes.set_ylabel("device memory (GiB)")
    axes.set_title(say(estimates[0].model, most=40))


def _space(tokens: Sequence[int]) -> list[int]:
    """Return numbers whose labels don't touch on a logarithmic axis, the last among them."""
    kept: list[int] = []
    least = (tokens[-1] / tokens[0]) ** 0.14
    for number in reversed(tokens):
        if not kept or kept[-1] >= number * least:
            kept.append(number)
    return kept[::-1]
