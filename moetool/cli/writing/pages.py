"""Check where an HTML page goes, and put it there."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from moetool.cli.output import check_report_path, is_file, print_or_write
from moetool.cli.progress import say, show_status
from moetool.errors import UsageError

_SUFFIXES = (".html", ".htm")
_BYTES_PER_MB = 1_000_000


def check_page_path(output: Path | None, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Check that a page can go to its output, before any work is done for it.

    Raises:
        UsageError: The output is a terminal, is not named as a page, exists, is one of the inputs,
            or can't be written.
    """
    if output is None or not is_file(output):
        if sys.stdout.isatty():
            raise UsageError(
                "A page is a file for a browser, not for a terminal.",
                hint="Name a file: -o page.html.",
            )
    elif output.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"'{output}' is not named as a page.", hint="End the name in .html, as in page.html."
        )
    check_report_path(output, force=force, inputs=inputs)


def put_page(page: str, output: Path | None, *, force: bool, is_quiet: bool) -> None:
    """Write a page to its file, or to stdout, and say so.

    Raises:
        UsageError: The file exists, or can't be written.
    """
    print_or_write(page, output, force=force)
    if output is not None and is_file(output) and not is_quiet:
        size = len(page.encode(errors="backslashreplace")) / _BYTES_PER_MB
        say(f"wrote {output} ({size:.1f} MB); open it in a browser")


def check_page_of_run(
    page: Path | None, *, trace: Path | None, force: bool, inputs: Iterable[Path]
) -> None:
    """Check that a page about a run's trace can be made, before the run.

    Args:
        page: None if there is none to make.
        trace: Output of the run.
        force: Replace an existing page.
        inputs: Files that the run reads.

    Raises:
        UsageError: The trace does not go to a file, or the page can't go to its own.
    """
    if page is None:
        return
    if trace is None or not is_file(trace):
        raise UsageError(
            "The page is made from the trace, so the trace must go to a file.",
            hint="Leave out --report, or add -o trace.parquet.",
        )
    if not is_file(page):
        raise UsageError(
            "The page of a run must go to a file.", hint="Name a file: --report page.html."
        )
    check_page_path(page, force=force, inputs=[*inputs, trace])


def make_page_of_run(page: Path | None, *, trace: Path | None, force: bool, is_quiet: bool) -> None:
    """Make the page about the trace of a run that has ended; nothing for None.

    Where it can't be made, the trace stays, and the last lines begin with that.
    """
    if page is None or trace is None:
        return
    try:
        with show_status(is_quiet=is_quiet) as show:
            show("making the page")
            from moetool.library.report import render_report

            text = render_report(trace, show=show)
        put_page(text, page, force=force, is_quiet=is_quiet)
    except BaseException:
        say(f"{trace} holds the whole trace; only the page is missing")
        raise
