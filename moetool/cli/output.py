"""Put a rendered report on stdout or into a file, which appears whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from moetool.errors import UsageError
from moetool.output.targets import check_target_file, saying_what_failed, write_file
from moetool.report.renderer import ReportFormat

_FORMAT_OF_SUFFIX = {
    ".json": ReportFormat.JSON,
    ".csv": ReportFormat.CSV,
    ".txt": ReportFormat.TABLE,
}


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


def print_or_write(text: str, output: Path | None, *, force: bool) -> None:
    """Print a report to stdout, or write it to a file.

    Where the output is a link, the link is replaced; the file that it leads to stays as it is.

    Raises:
        UsageError: The file exists, or can't be written.
    """
    if output is None or not is_file(output):
        sys.stdout.write(text)
        return
    check_report_path(output, force=force)
    with saying_what_failed(output):
        write_file(text.encode(errors="backslashreplace"), output, replace_existing=force)
