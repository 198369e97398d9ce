"""Put a rendered report on stdout or into a file, which appears whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import typer

from moetool.errors import UsageError
from moetool.output.targets import check_target_file, saying_what_failed, write_file
from moetool.report.renderer import DEFAULT_VIEW, ReportFormat, View

_FORMAT_OF_SUFFIX = {
    ".json": ReportFormat.JSON,
    ".csv": ReportFormat.CSV,
    ".txt": ReportFormat.TABLE,
}
_COLOR_OF_LABEL = {"error:": typer.colors.RED, "warning:": typer.colors.YELLOW, "hint:": None}
# Widths of terminals that pages are laid out for.
_NARROWEST, _USUAL, _WIDEST = 60, 80, 200


def choose_report_format(asked: ReportFormat | None, output: Path | None) -> ReportFormat:
    """Return the format that was asked for, else that of the output's suffix, else a table.

    Raises:
        UsageError: The suffix stands for none of the formats.
    """
    if asked is not None or not is_file(output):
        return asked or ReportFormat.TABLE
    assert output is not None
    if output.suffix not in _FORMAT_OF_SUFFIX:
        raise UsageError(
            f"The format of '{output}' is not clear from its name.",
            hint="End the name in .json, .csv or .txt, or give --format.",
        )
    return _FORMAT_OF_SUFFIX[output.suffix]


def is_file(output: Path | None) -> bool:
    """Return whether an output names a file. None and `-` are stdout."""
    return output is not None and str(output) != "-"


def see_output(output: Path | None) -> View:
    """Return the view of a report on its output: the terminal's if it goes to one."""
    return DEFAULT_VIEW if is_file(output) else see_terminal(sys.stdout)


def see_terminal(stream: TextIO) -> View:
    """Return the width and colour that suit a stream. Only a terminal has a width."""
    if not stream.isatty():
        return View(has_color=has_color(stream))
    width = min(max(_count_columns(stream), _NARROWEST), _WIDEST)
    return View(width=width, has_color=has_color(stream))


def has_color(stream: TextIO) -> bool:
    """Return whether to write in colour.

    Terminals have colour unless NO_COLOR is set or they are dumb. FORCE_COLOR asks for colour
    elsewhere as well.
    """
    from rich.console import Console

    console = Console(file=stream)
    return console.is_terminal and not (console.is_dumb_terminal or console.no_color)


def _count_columns(terminal: TextIO) -> int:
    """Return the columns of a terminal, or what COLUMNS says, as in other programs."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isascii() and asked.isdecimal() and int(asked):
        return int(asked)
    return os.get_terminal_size(terminal.fileno()).columns or _USUAL


def paint_label(line: str) -> str:
    """Return a line for stderr, with the label that it begins with emphasized where colour suits."""
    if has_color(sys.stderr):
        for label, color in _COLOR_OF_LABEL.items():
            if line.startswith(f"{label} "):
                return typer.style(label, fg=color, bold=True) + line.removeprefix(label)
    return line


def check_report_path(output: Path | None, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Check that a report can be written to its output, before any work is done for it.

    Args:
        output: A file; None and `-` are stdout.
        force: Accept an output that exists.
        inputs: Files that the report is made from.

    Raises:
        UsageError: The file exists, is one of the inputs, or can't be written.
    """
    if output is not None and is_file(output):
        check_target_file(output, replace_existing=force, inputs=inputs)


def print_or_write(text: str | Iterable[str], output: Path | None, *, force: bool) -> None:
    """Print a report to stdout, or write it to a file.

    Where the output is a link, the link is replaced; the file that it leads to stays as it is.

    Args:
        text: The report, or its parts in order, of which one is in memory at a time.
        output: A file; None and `-` are stdout.
        force: Replace a file that exists.

    Raises:
        UsageError: The file exists, or can't be written.
    """
    parts = [text] if isinstance(text, str) else text
    if output is None or not is_file(output):
        sys.stdout.writelines(parts)
        return
    check_report_path(output, force=force)
    with saying_what_failed(output):
        encoded = (part.encode(errors="backslashreplace") for part in parts)
        write_file(encoded, output, replace_existing=force)
