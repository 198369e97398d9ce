"""Run `moetool plot coactivation`: the experts that are chosen together."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.figures import COLUMN_WIDTH_IN, FigureOption, LayerOption, WidthOption
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

SUMMARY = "Draw experts chosen together."
EXAMPLES = (
    "moetool plot coactivation trace.parquet -o pairs.svg",
    "moetool plot coactivation trace.parquet --layer 5 -o layer5.pdf",
)


@speaks_errors
def coactivation(
    trace: TraceArgument,
    output: FigureOption,
    layers: LayersOption = None,
    layer: LayerOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw which experts are chosen together.

    A map of the lift of every pair of one layer, and the strongest pair of each layer with the 95%
    interval of its lift, next to the strongest pair of a uniform random router.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.coactivation import measure_coactivation
        from moetool.report.figures.coactivation import draw_coactivation

    check_figure(output, width_in=width, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_coactivation(
            trace,
            layers=parse_layers(layers),
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    write_figure(draw_coactivation(result, layer=layer, width_in=width), output, force=force)
