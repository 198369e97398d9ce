"""Run `moetool coactivation`: which experts are chosen together, and what that predicts."""

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

SUMMARY = "Show experts that are chosen together."
EXAMPLES = (
    "moetool coactivation trace.parquet",
    "moetool coactivation trace.parquet --layers 0-3 --pairs 1000 --format json",
    "moetool coactivation trace.parquet -o pairs.csv",
)


@speaks_errors
def coactivation(
    trace: TraceArgument,
    pairs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pairs in each list of the JSON report.")
    ] = 100,
    by: ByOption = "domain",
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show which experts are chosen together, in a layer and from one layer to the next.

    For each layer: the pairs that decisions choose together more or less often than the experts'
    loads explain, the strongest of them, and groups of experts. For each layer and the next: how
    many of the next layer's experts can be predicted from the layer's, on prompts that the
    predictor has not seen. CSV has one row for each pair: the whole matrices.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.analysis.coactivation.measure import measure_coactivation
        from moetool.report.questions.coactivation import RENDERERS, iter_csv
        from moetool.report.renderer import ReportFormat
        from moetool.trace.reading.reader import open_trace
        from moetool.trace.windows.reader import DecisionReader

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        reader = DecisionReader(
            open_trace(trace),
            by=by,
            layers=parse_layers(layers),
            num_experts=num_experts,
            top_k=top_k,
            is_checked=not no_validate,
        )
        result = measure_coactivation(reader, by=by, num_listed=pairs, show=show)
    is_csv = chosen is ReportFormat.CSV
    text = iter_csv(result) if is_csv else RENDERERS[chosen](result, see_output(output))
    print_or_write(text, output, force=force)
