"""Run `moetool plot load`: the load of every expert in every layer."""

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
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.progress import show_status
from moetool.cli.writing.figures import check_figure, write_figure

SUMMARY = "Draw the load of experts."
EXAMPLES = (
    "moetool plot load trace.parquet -o load.svg",
    "moetool plot load loads.parquet --width 6.9 -o load.pdf",
)


@speaks_errors
def load(
    trace: TraceArgument,
    output: FigureOption,
    by: ByOption = "domain",
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the load of every expert in every layer.

    A map of load over mean load, and its spread in each layer next to that of a uniform random
    router on as many tokens. A load table is accepted as well.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.balance import measure_balance
        from moetool.report.figures.load import draw_load

    check_figure(output, width_in=width, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_balance(
            trace,
            by=by,
            layers=parse_layers(layers),
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    write_figure(draw_load(result, width_in=width), output, force=force)
