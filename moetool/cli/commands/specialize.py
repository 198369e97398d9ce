"""`moetool specialize`: which experts does each domain use, and is it more than chance?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options import ReportFormat, choose_report_format

# Expert ids are 16-bit integers.
_MOST_IDS = 2**15


@speaks_errors
def specialize(
    trace: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="A .parquet or .csv trace, or a folder of Parquet parts.",
            show_default=False,
        ),
    ],
    output_format: Annotated[ReportFormat | None, typer.Option("--format")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file, by default stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    permutations: Annotated[
        int, typer.Option(min=1, help="Permutations of the prompts' labels.")
    ] = 999,
    seed: Annotated[int, typer.Option(min=0, help="Of the permutations.")] = 0,
    num_experts: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_IDS, help="Experts a layer, for a trace without metadata."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST_IDS, help="Experts a decision, for a trace without metadata."
        ),
    ] = None,
    no_validate: Annotated[
        bool,
        typer.Option(
            "--no-validate", help="Count rows that no trace has, such as rows that occur twice."
        ),
    ] = False,
) -> None:
    """Show how far experts specialize by domain.

    For every layer: the mutual information between expert and domain beyond what permuting the
    prompts' labels gives, and its p-value. For every domain: the experts it uses more than the
    prompts as a whole do. CSV has one row for every domain, layer and expert.

    The rows are checked as they are read: none occurs twice, each prompt is of one domain, and
    the trace's metadata agrees.
    """
    from moetool.analysis.specialization import measure_specialization
    from moetool.report.files import check_report_path, write_report
    from moetool.report.specialize import RENDERERS
    from moetool.trace.reading.counts import count_experts
    from moetool.trace.reading.reader import open_trace

    chosen = choose_report_format(output_format, output)
    check_report_path(output, replace_existing=force, inputs=list_trace_files(trace))
    source = open_trace(trace)
    counts = count_experts(
        source,
        by="prompt_id",
        num_experts=num_experts,
        top_k=top_k,
        validate=not no_validate,
    )
    result = measure_specialization(counts, num_permutations=permutations, seed=seed)
    text = RENDERERS[chosen.value](result, trace=str(trace))
    write_report(text, output, replace_existing=force)
