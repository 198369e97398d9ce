"""Run `moetool plot confidence`: how much of a decision's weight the first choice has."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.figures import COLUMN_WIDTH_IN, FigureOption, WidthOption
from moetool.cli.options.shared import ForceOption, QuietOption
from moetool.cli.options.traces import (
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.progress import show_status
from moetool.cli.writing.figures import check_figure, write_figure

SUMMARY = "Draw the weight of first choices."
EXAMPLES = (
    "moetool plot confidence trace.parquet -o confidence.svg",
    "moetool plot confidence trace.parquet --layers 0-11 -o confidence.pdf",
)


@speaks_errors
def confidence(
    trace: TraceArgument,
    output: FigureOption,
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw how much of a decision's weight its first choice has.

    The spread over the decisions of each layer, next to a router that gives all chosen experts the
    same weight.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.confidence import measure_confidence
        from moetool.report.figures.confidence import draw_confidence

    check_figure(output, width_in=width, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_confidence(
            trace,
            layers=parse_layers(layers),
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    write_figure(draw_confidence(result, width_in=width), output, force=force)
