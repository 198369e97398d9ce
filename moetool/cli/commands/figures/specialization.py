"""Run `moetool plot specialization`: the information between expert and domain in every layer."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.figures import (
    COLUMN_WIDTH_IN,
    FigureOption,
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

SUMMARY = "Draw how far experts specialize."
EXAMPLES = (
    "moetool plot specialization trace.parquet -o specialization.svg",
    "moetool plot specialization trace.parquet --layers 0-11 -o early.pdf",
)


@speaks_errors
def specialization(
    trace: TraceArgument,
    output: FigureOption,
    by: ByOption = "domain",
    layers: LayersOption = None,
    permutations: PermutationsOption = 999,
    seed: SeedOption = 0,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw how much the choice of experts depends on the domain, layer by layer.

    The mutual information next to that of permuted labels and of a uniform random router, and the
    share of the domains' entropy that experts explain, also given the token.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.specialize import measure_specialization
        from moetool.report.figures.specialization import draw_specialization

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
    write_figure(draw_specialization(result, width_in=width), output, force=force)
