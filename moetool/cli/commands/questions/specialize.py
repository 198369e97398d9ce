"""Run `moetool specialize`: which experts each domain uses, and whether that is chance."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.shared import (
    ForceOption,
    FormatOption,
    OutputOption,
    QuietOption,
)
from moetool.cli.options.traces import (
    TRACE_PANEL,
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status
from moetool.errors import UsageError

_PERMUTATIONS = 999
_MIN_COUNT = 10

SUMMARY = "Test if experts specialize by domain."
EXAMPLES = (
    "moetool specialize trace.parquet",
    "moetool specialize trace.parquet --by token --layers 0,5",
)


@speaks_errors
def specialize(
    trace: TraceArgument,
    by: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Column with each prompt's domain; or token, for specialization by token id.",
            rich_help_panel=TRACE_PANEL,
        ),
    ] = "domain",
    layers: LayersOption = None,
    permutations: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Permutations of the prompts' labels for each p-value.",
            show_default=str(_PERMUTATIONS),
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --by token: occurrences that a token id needs.",
            show_default=str(_MIN_COUNT),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed.")] = 0,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how far experts specialize by domain, or by token.

    For each layer: the mutual information between expert and domain beyond what permuting the
    prompts' labels gives, its p-value, and what is left of it when the token is known. For each
    domain: the experts it uses more than the prompts as a whole do, and how far it is from the
    others. CSV has one row per domain, layer and expert.

    With --by token: how far the token id decides, and the most characteristic tokens of each
    expert, in CSV a row for each.

    Rows are checked as they are read: none occurs twice, each prompt has one domain, and all
    agree with the trace's metadata.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.analysis.specialization.by_token.measure import measure_token_specialization
        from moetool.analysis.specialization.from_trace import SpecializationOptions, measure_trace
        from moetool.report.questions import specialize as domain_report
        from moetool.report.questions import specialize_tokens as token_report
        from moetool.trace.reading.reader import open_trace

    is_by_token = by == "token"
    _refuse_useless(is_by_token, permutations=permutations, min_count=min_count)
    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    options = SpecializationOptions(
        by=by,
        layers=parse_layers(layers),
        num_permutations=permutations or _PERMUTATIONS,
        seed=seed,
        num_experts=num_experts,
        top_k=top_k,
        is_checked=not no_validate,
    )
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        source = open_trace(trace)
        if is_by_token:
            by_token = measure_token_specialization(
                source, options, min_count=min_count or _MIN_COUNT, show=show
            )
        else:
            result = measure_trace(source, options, show=show)
    view = see_output(output)
    text = (
        token_report.RENDERERS[chosen](by_token, view)
        if is_by_token
        else domain_report.RENDERERS[chosen](result, view)
    )
    print_or_write(text, output, force=force)


def _refuse_useless(is_by_token: bool, *, permutations: int | None, min_count: int | None) -> None:
    if is_by_token and permutations is not None:
        raise UsageError(
            "Permutations have no effect: specialization by token has no p-values.",
            hint="Leave out --permutations, or --by token.",
        )
    if not is_by_token and min_count is not None:
        raise UsageError(
            "--min-count has no effect: domains are compared, not tokens.",
            hint="Leave out --min-count, or add --by token.",
        )
