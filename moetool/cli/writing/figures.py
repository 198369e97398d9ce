"""Check where a figure goes before it is drawn, and write it there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import UsageError
from moetool.output.targets import check_target_file, saying_what_failed, write_file
from moetool.report.figures.files import FORMATS, render_figure
from moetool.report.figures.style import check_matplotlib, check_width
from moetool.wording import join_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_figure(
    output: Path, *, width_in: float, force: bool, inputs: Iterable[Path] = ()
) -> None:
    """Check that a figure can be drawn and written, before any work is done for it.

    Args:
        output: The file to write.
        width_in: Width in inches.
        force: Accept an output that exists.
        inputs: Files that the figure is made from.

    Raises:
        UsageError: The file's name has no suffix of a figure, the file exists, is one of the inputs
            or can't be written, the width is out of range, or matplotlib is not installed.
    """
    if output.suffix.removeprefix(".") not in FORMATS:
        suffixes = join_words([f".{name}" for name in FORMATS], last="or")
        raise UsageError(
            f"'{output}' is not the name of a figure.", hint=f"End the name in {suffixes}."
        )
    check_width(width_in)
    check_matplotlib()
    check_target_file(output, replace_existing=force, inputs=inputs)


def write_figure(figure: Figure, output: Path, *, force: bool) -> None:
    """Write a figure in the format of the file's name.

    Raises:
        UsageError: The file exists, or can't be written.
    """
    content = render_figure(figure, output.suffix.removeprefix("."))
    check_target_file(output, replace_existing=force)
    with saying_what_failed(output):
        write_file(content, output, replace_existing=force)
