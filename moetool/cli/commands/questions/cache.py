"""Run `moetool cache`: what keeping some experts on the GPU is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.completion import complete_models
from moetool.cli.options.shared import (
    MODEL_PANEL,
    ForceOption,
    FormatOption,
    OutputOption,
    QuietOption,
)
from moetool.cli.options.traces import (
    TRACE_PANEL,
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status

SUMMARY = "Simulate caches of experts on the GPU."
EXAMPLES = (
    "moetool cache trace.parquet",
    "moetool cache trace.parquet --budget 8,25%,12GiB --model olmoe-1b-7b",
    "moetool cache trace.parquet --by domain --tokens-per-batch 512 -o cache.json",
)


@speaks_errors
def cache(
    trace: TraceArgument,
    budget: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Experts per layer (16), a share of them (25%) or memory for all (12GiB).",
        ),
    ] = "12.5%,25%,50%",
    tokens_per_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens of a prompt that pass together. Default: all of them.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Show hits by group of this column too, such as domain or prompt_id.",
            rich_help_panel=TRACE_PANEL,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model that gives the size of an expert. Default: the trace's, if known offline.",
            autocompletion=complete_models,
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    expert_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="Size of an expert, instead of a model's.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what keeping some experts of each layer on the GPU is worth.

    For each budget: the share of experts that are on the GPU when they are needed, and the bytes
    moved per token, with a fixed set, LRU, LFU and Belady's optimum, next to a random router, in
    decode and prefill. Then the distinct experts that batches of tokens need. CSV has one row per
    policy, budget and phase, and per group of --by.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.cache import simulate_caches
        from moetool.report.questions.cache import RENDERERS

    chosen = choose_report_format(output_format, output)
    numbers = parse_layers(layers)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = simulate_caches(
            trace,
            budget=budget,
            tokens_per_batch=tokens_per_batch,
            by=by,
            model=model,
            expert_bytes=expert_bytes,
            layers=numbers,
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    view = replace(see_output(output), source=str(trace))
    print_or_write(RENDERERS[chosen](result, view), output, force=force)
