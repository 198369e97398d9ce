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

SUMMARY = "Test if experts specialize by domain."
EXAMPLES = (
    "moetool specialize trace.parquet",
    "moetool specialize trace.parquet --permutations 9999 -o domains.json",
    "moetool specialize other.csv --num-experts 64 --top-k 8",
)


@speaks_errors
def specialize(
    trace: TraceArgument,
    by: ByOption = "domain",
    layers: LayersOption = None,
    permutations: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Permutations of the prompts' labels for each p-value."
        ),
    ] = 999,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random seed for the permutations.")
    ] = 0,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show how far experts specialize by domain.

    For each layer: the mutual information between expert and domain beyond what permuting the
    prompts' labels gives, its p-value, and what is left of it when the token is known. For each
    domain: the experts it uses more than the prompts as a whole do, and how far it is from the
    others. CSV has one row per domain, layer and expert.

    Rows are checked as they are read: none occurs twice, each prompt has one domain, and all
    agree with the trace's metadata.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.analysis.specialization.from_trace import (
            SpecializationOptions,
            measure_trace,
        )
        from moetool.report.questions.specialize import RENDERERS
        from moetool.trace.reading.reader import open_trace

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    options = SpecializationOptions(
        by=by,
        layers=parse_layers(layers),
        num_permutations=permutations,
        seed=seed,
        num_experts=num_experts,
        top_k=top_k,
        is_checked=not no_validate,
    )
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = measure_trace(open_trace(trace), options, show=show)
    print_or_write(RENDERERS[chosen](result, see_output(output)), output, force=force)
