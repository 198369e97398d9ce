"""Where a rendered report goes: stdout, or a file that appears whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from moetool.output.targets import check_target_file, saying_what_failed, write_file


def check_report_path(
    output: Path | None, *, replace_existing: bool, inputs: Iterable[Path] = ()
) -> None:
    """Check, before the work for a report is done, that it may be written where it is to go.

    Args:
        output: Where the report is to go; None and `-` are stdout.
        replace_existing: Accept a file or a link that is there.
        inputs: Files that the report is made from.

    Raises:
        UsageError: The file exists, is one of the inputs, or can't be written.
    """
    if output is not None and str(output) != "-":
        check_target_file(output, replace_existing=replace_existing, inputs=inputs)


def write_report(text: str, output: Path | None, *, replace_existing: bool) -> None:
    """Write a report to a file, or to stdout for None and `-`.

    A link is replaced, and the file that it leads to is kept.

    Raises:
        UsageError: The file exists, or can't be written.
    """
    if output is None or str(output) == "-":
        sys.stdout.write(text)
        return
    check_report_path(output, replace_existing=replace_existing)
    with saying_what_failed(output):
        write_file(
            text.encode(errors="backslashreplace"), output, replace_existing=replace_existing
        )
