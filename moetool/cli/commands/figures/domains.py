"""Run `moetool plot domains`: the experts that each domain uses more than all domains do."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.figures import (
    COLUMN_WIDTH_IN,
    FigureOption,
    LayerOption,
    PermutationsOption,
    SeedOption,
    WidthOption,
)
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

SUMMARY = "Draw the experts of each domain."
EXAMPLES = (
    "moetool plot domains trace.parquet -o domains.svg",
    "moetool plot domains trace.parquet --layer 5 -o layer5.pdf",
)


@speaks_errors
def domains(
    trace: TraceArgument,
    output: FigureOption,
    by: ByOption = "domain",
    layers: LayersOption = None,
    layer: LayerOption = None,
    permutations: PermutationsOption = 999,
    seed: SeedOption = 0,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw which experts each domain uses more than all domains together.

    A map of the lift of domains and experts in one layer, and the surest experts of each domain
    with the 95% intervals of their lifts. A random router has a lift of 1.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.specialize import measure_specialization
        from moetool.report.figures.domains import draw_domains

    check_figure(output, width_in=width, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_specialization(
            trace,
            by=by,
            layers=parse_layers(layers),
            num_permutations=permutations,
            seed=seed,
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    write_figure(draw_domains(result, layer=layer, width_in=width), output, force=force)
