"""Run `moetool balance`: how evenly experts share the work, and what limited capacity would drop."""

from __future__ import annotations

from dataclasses import replace

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.shared import ForceOption, FormatOption, OutputOption, QuietOption
from moetool.cli.options.traces import (
    ByOption,
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TokensPerBatchOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status

SUMMARY = "Measure how evenly experts are used."
EXAMPLES = (
    "moetool balance trace.parquet",
    "moetool balance trace.parquet --tokens-per-batch 512 -o balance.json",
    "moetool balance loads.parquet --format csv",
)


@speaks_errors
def balance(
    trace: TraceArgument,
    by: ByOption = "domain",
    tokens_per_batch: TokensPerBatchOption = None,
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how evenly the experts of each layer share the work.

    For each layer: the load of the experts, how uneven it is, and what a uniform random router
    would give on as many tokens. For all layers: the share of assignments that experts of limited
    capacity would drop, and the auxiliary losses where route-trace recorded --probabilities.
    A load table is accepted as well. CSV has one row per layer and part: all tokens, each group,
    each phase.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.balance import measure_balance
        from moetool.report.questions.balance import RENDERERS

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_balance(
            trace,
            by=by,
            layers=parse_layers(layers),
            tokens_per_batch=tokens_per_batch,
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    view = replace(see_output(output), source=str(trace))
    print_or_write(RENDERERS[chosen](result, view), output, force=force)
