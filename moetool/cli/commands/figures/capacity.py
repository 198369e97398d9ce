"""Run `moetool plot capacity`: what experts of limited capacity would drop."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.figures import COLUMN_WIDTH_IN, FigureOption, WidthOption
from moetool.cli.options.shared import ForceOption, QuietOption
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
from moetool.cli.progress import show_status
from moetool.cli.writing.figures import check_figure, write_figure

SUMMARY = "Draw dropped assignments by capacity."
EXAMPLES = (
    "moetool plot capacity trace.parquet -o capacity.svg",
    "moetool plot capacity trace.parquet --tokens-per-batch 512 -o capacity.pdf",
)


@speaks_errors
def capacity(
    trace: TraceArgument,
    output: FigureOption,
    by: ByOption = "domain",
    tokens_per_batch: TokensPerBatchOption = None,
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the assignments that experts of limited capacity would drop.

    Their share by capacity factor, and by place in the batch, next to a uniform random router. A
    load table with steps is accepted as well.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.balance import measure_balance
        from moetool.report.figures.capacity import draw_capacity

    check_figure(output, width_in=width, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_balance(
            trace,
            by=by,
            tokens_per_batch=tokens_per_batch,
            layers=parse_layers(layers),
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    write_figure(draw_capacity(result, width_in=width), output, force=force)
