"""Run `moetool validate`: whether a trace is sound, what it is, and what it can answer."""

from __future__ import annotations

import sys

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.shared import ForceOption, FormatOption, OutputOption, QuietOption
from moetool.cli.options.traces import TraceArgument
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status

SUMMARY = "Check a trace, and say what is in it."
EXAMPLES = (
    "moetool validate trace.parquet",
    "moetool validate trace.partial --format json",
    "moetool validate other.csv -o checks.csv",
)


@speaks_errors
def validate(
    trace: TraceArgument,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every row of a trace, and show what it is and what it can answer.

    Each check is shown with the number of faults and the first one. The exit code is 3 if a check
    failed. CSV has one row per check.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.analysis.validation.measure import refuse_invalid, validate_source
        from moetool.report.questions.validate import RENDERERS
        from moetool.trace.reading.reader import open_trace

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = validate_source(open_trace(trace))
    print_or_write(RENDERERS[chosen](result, see_output(output)), output, force=force)
    sys.stdout.flush()
    refuse_invalid(result)
