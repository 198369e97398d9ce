"""Run `moetool gpus`: the GPUs that can be named without one at hand."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.options.shared import ForceOption, FormatOption, OutputOption, QuietOption
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output

SUMMARY = "List the GPUs known by name."
EXAMPLES = (
    "moetool gpus",
    "moetool gpus --vendor amd",
    "moetool gpus --min-memory 80GiB --format csv -o gpus.csv",
)


@speaks_errors
def gpus(
    vendor: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="List only this vendor's: nvidia, amd or google."),
    ] = None,
    min_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="List only those with at least this much, as in 40GiB."),
    ] = None,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    # Scripts pass it to every command; this one has nothing to silence.
    _quiet: QuietOption = False,
) -> None:
    """List the GPUs that other commands know by name, the smallest first.

    For each GPU: its memory, bandwidth and peaks, with their source in JSON and CSV.
    """
    from moetool.catalogue.gpus import list_gpus, parse_memory
    from moetool.report.gpus import RENDERERS

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force)
    smallest = 0 if min_memory is None else parse_memory(min_memory)
    listed = list_gpus(vendor=vendor, min_memory_bytes=smallest)
    print_or_write(RENDERERS[chosen](listed, see_output(output)), output, force=force)
