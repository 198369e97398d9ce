"""Where a rendered report goes: stdout, or a file that appears whole or not at all."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from moetool.errors import UsageError


def check_report_path(output: Path | None, *, replace_existing: bool) -> None:
    """Check, before the work for a report is done, that it may be written where it is to go.

    Raises:
        UsageError: The file exists.
    """
    if output is None or str(output) == "-":
        return
    if output.exists() and not replace_existing:
        raise UsageError(f"'{output}' exists.", hint="Choose another name, or add --force.")


def write_report(text: str, output: Path | None, *, replace_existing: bool) -> None:
    """Write a report to a file, or to stdout for None and `-`.

    Raises:
        UsageError: The file exists, or can't be written.
    """
    if output is None or str(output) == "-":
        sys.stdout.write(text)
        return
    check_report_path(output, replace_existing=replace_existing)
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        unfinished.replace(output)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise UsageError(
            f"Can't write '{output}': {error.strerror}.", hint="Name a file you may write."
        ) from error
