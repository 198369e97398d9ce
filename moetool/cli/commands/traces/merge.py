"""Run `moetool merge`: traces of one model, joined into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.shared import FLAG, ForceOption, QuietOption
from moetool.cli.progress import say, show_status
from moetool.errors import UsageError

SUMMARY = "Join traces of one model into one file."
EXAMPLES = (
    "moetool merge code.parquet prose.parquet -o all.parquet",
    "moetool merge run1 run2 --prefix-prompts -o both.parquet",
    "moetool merge trace.partial -o trace.csv",
)


@speaks_errors
def merge(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...",
            help="Traces: .parquet or .csv files, or folders of Parquet parts.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The .parquet or .csv file to write.",
            show_default=False,
        ),
    ] = None,
    prefix_prompts: Annotated[
        bool,
        typer.Option(
            "--prefix-prompts",
            metavar=FLAG,
            help="Put each trace's name before its prompt ids, as in code/17.",
        ),
    ] = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Join traces of one model, such as those of several runs, into one file.

    Every row is checked. Traces of different models or with different columns are refused, and
    so are prompts of one id in two traces, which would become one prompt.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.trace.joining import merge_sources
        from moetool.trace.reading.reader import open_trace
        from moetool.trace.writing.targets import check_target
        from moetool.wording import number_of

    if output is None:
        raise UsageError(
            "The file to write is missing.", hint="Add -o with a .parquet or .csv file."
        )
    inputs = [file for trace in traces for file in list_trace_files(trace)]
    check_target(output, replace_existing=force, inputs=inputs)
    with show_status(is_quiet=quiet) as show:
        merged = merge_sources(
            [open_trace(trace) for trace in traces],
            output,
            prefix_prompts=prefix_prompts,
            replace_existing=force,
            show=show,
        )
    if quiet:
        return
    for note in merged.notes:
        say(f"note: {note}")
    say(
        f"wrote {output}: {number_of(merged.num_rows, 'row')} of "
        f"{number_of(merged.num_prompts, 'prompt')} from {number_of(merged.num_traces, 'trace')}"
    )
