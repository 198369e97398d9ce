"""Run `moetool compare`: whether two traces of the same tokens choose the same experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.shared import (
    FLAG,
    ForceOption,
    FormatOption,
    OutputOption,
    QuietOption,
)
from moetool.cli.options.traces import (
    ByOption,
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status

SUMMARY = "Compare two traces of the same tokens."
EXAMPLES = (
    "moetool compare trace.parquet bfloat16.parquet",
    "moetool compare step1000.parquet final.parquet --by phase -o saturation.json",
    "moetool compare rollout.parquet trainer.parquet --common-tokens",
)


@speaks_errors
def compare(
    trace: TraceArgument,
    other: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="Another trace of the same tokens: the reference, if one of them is.",
            show_default=False,
        ),
    ],
    by: ByOption = "domain",
    layers: LayersOption = None,
    common_tokens: Annotated[
        bool,
        typer.Option(
            "--common-tokens",
            metavar=FLAG,
            help="Compare the tokens that both traces have instead of refusing others.",
        ),
    ] = False,
    min_count: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Occurrences that a token id needs to be listed."),
    ] = 10,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how far two traces of the same tokens choose the same experts.

    The traces may be of two quantizations, checkpoints, engines or models of one shape. For each
    layer, group of tokens and position: the share of experts that both chose, the share of
    decisions that differ, next to two random routers, and the tokens that changed most. CSV has one
    row per layer and group.

    Traces of different tokens are refused, with the first place where they differ.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.compare import compare_traces
        from moetool.report.questions.compare import RENDERERS

    chosen = choose_report_format(output_format, output)
    numbers = parse_layers(layers)
    inputs = [*list_trace_files(trace), *list_trace_files(other)]
    check_report_path(output, force=force, inputs=inputs)
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace} and {other}")
        result = compare_traces(
            trace,
            other,
            by=by,
            layers=numbers,
            common_tokens=common_tokens,
            min_count=min_count,
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    view = replace(see_output(output), source=str(trace))
    print_or_write(RENDERERS[chosen](result, view), output, force=force)
