"""Run `moetool report`: one HTML page about a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.shared import FLAG, OUTPUT_PANEL, ForceOption, QuietOption
from moetool.cli.options.traces import (
    TRACE_PANEL,
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.progress import show_status
from moetool.cli.writing.pages import check_page_path, put_page

SUMMARY = "Make an HTML page about a trace."
EXAMPLES = (
    "moetool report trace.parquet -o page.html",
    "moetool report trace.parquet --compare bfloat16.parquet -o page.html",
    "moetool report trace.parquet --redact-text -o page.html",
)


@speaks_errors
def report(
    trace: TraceArgument,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="TRACE",
            help="Another trace of the same tokens, to compare with.",
        ),
    ] = None,
    redact_text: Annotated[
        bool,
        typer.Option(
            "--redact-text",
            metavar=FLAG,
            help="Leave the texts of prompts and tokens out.",
        ),
    ] = False,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="Column of prompts whose values are compared, such as domain.",
            rich_help_panel=TRACE_PANEL,
        ),
    ] = "domain",
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write to this .html file instead of stdout.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make one HTML page that shows what a trace says.

    Prompts with their tokens tinted by expert, a map of layers and experts, each expert's domains,
    tokens and partners, load and capacity, GPUs, and with --compare what another trace changed.
    The page is one file that needs no network; its figures are those of the other commands.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.report import render_report

    inputs = [*list_trace_files(trace), *list_trace_files(compare)]
    check_page_path(output, force=force, inputs=inputs)
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        page = render_report(
            trace,
            compare=compare,
            by=by,
            layers=parse_layers(layers),
            redact_text=redact_text,
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
            show=show,
        )
    put_page(page, output, force=force, is_quiet=quiet)
