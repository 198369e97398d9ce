"""Traces of one model merged into one file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from moetool.choices import take_flag, take_path
from moetool.errors import UsageError
from moetool.trace.joining import MergedTrace, merge_sources
from moetool.trace.reading.reader import open_trace


def merge_traces(
    traces: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    prefix_prompts: bool = False,
    overwrite: bool = False,
) -> MergedTrace:
    """Write several traces of one model into one file, as `moetool merge` does.

    Args:
        traces: Paths of files, or of folders of Parquet parts; at least one.
        output: A `.parquet` or `.csv` file, which appears only when it is whole.
        prefix_prompts: Put the name of each trace before its prompt ids, as in `code/17`.
        overwrite: Replace an existing file.

    Raises:
        InputError: There is no trace, a row is not one of a trace, or the traces are of different
            models, have different columns or prompts of one id.
        UsageError: An argument is of another type, or the file can't be written.
    """
    given: Any = traces
    if isinstance(given, str | PathLike) or not isinstance(given, Sequence) or not given:
        raise UsageError(
            "Traces to merge are given as a list of paths.", hint="Give a list with each path."
        )
    return merge_sources(
        [open_trace(take_path(trace, name="trace")) for trace in traces],
        take_path(output, name="output"),
        prefix_prompts=take_flag(prefix_prompts, name="prefix_prompts"),
        replace_existing=take_flag(overwrite, name="overwrite"),
    )
