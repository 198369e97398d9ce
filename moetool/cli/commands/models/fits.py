"""Run `moetool fits`: the models of the catalogue that run on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from moetool.cli.bar import show_bar
from moetool.cli.errors import speaks_errors
from moetool.cli.options import loading
from moetool.cli.options.completion import complete_gpus
from moetool.cli.options.shared import (
    FLAG,
    ForceOption,
    FormatOption,
    OutputOption,
    QuietOption,
)
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.errors import UsageError
from moetool.memory.fitting.model_fit import FitSort
from moetool.memory.scenario import NUM_NEW_TOKENS, Scenario
from moetool.quantizing.kinds import Quantization, QuantizedExperts

SUMMARY = "List the models that a GPU can run."
EXAMPLES = (
    "moetool fits --gpu rtx-4090",
    "moetool fits --gpu 24GiB --quantization nf4 --experts quantized",
    "moetool fits --gpu h200 --prompt-tokens 32768 --sort prompt -o fits.csv",
)


@speaks_errors
def fits(
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            metavar="GPU",
            help="A GPU, such as h200 or rtx-4090 (see `moetool gpus`), an amount of memory, such as "
            "24GiB, or here for this machine's GPU.",
            show_default=False,
            autocompletion=complete_gpus,
        ),
    ],
    family: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only models with this in their name or Hub id."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Sequences in a batch.")
    ] = Scenario.batch_size,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Prompt tokens of each sequence. Default: {Scenario.num_prompt_tokens}, or as many "
            "as a model's context allows.",
        ),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"New tokens of each sequence. Default: {NUM_NEW_TOKENS}, within the context.",
        ),
    ] = None,
    list_all: Annotated[
        bool,
        typer.Option("--all", metavar=FLAG, help="Also list the models that don't run, and why."),
    ] = False,
    sort: Annotated[
        FitSort,
        typer.Option(
            metavar="ORDER",
            help="name, or the largest first by total, active, headroom (memory to spare) or prompt.",
        ),
    ] = FitSort.TOTAL,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            metavar=FLAG,
            help="Neither use nor keep what is known from earlier runs.",
        ),
    ] = False,
    quantization: loading.QuantizationOption = Quantization.NONE,
    double_quantization: loading.DoubleQuantization = False,
    experts: loading.Experts = QuantizedExperts.AS_LOADED,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the models of the catalogue that a GPU can run, and the longest prompt of each.

    Each figure is that of `moetool memory-estimate MODEL --gpu GPU`. The first run takes a few
    minutes on all cores; what it finds out is kept in the user's cache folder, or in the folder
    that MOETOOL_CACHE names.
    """
    from moetool.catalogue.published import read_published_models
    from moetool.catalogue.selection import select_models
    from moetool.memory.fitting.catalogue_fits import find_fitting_models
    from moetool.report.memory.catalogue import RENDERERS

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force)
    scenario = Scenario(
        batch_size=batch_size,
        num_prompt_tokens=Scenario.num_prompt_tokens if prompt_tokens is None else prompt_tokens,
        num_new_tokens=NUM_NEW_TOKENS if new_tokens is None else new_tokens,
        **loading.read(quantization, double_quantization, experts),
    )
    given = {"num_prompt_tokens": prompt_tokens, "num_new_tokens": new_tokens}
    selected = select_models(read_published_models().values(), family=family).models
    if not selected:
        raise UsageError(
            f"No model of the catalogue matches the family '{family}'.",
            hint="Run `moetool models` to list its models.",
        )
    with show_bar("models", is_quiet=quiet) as show:
        found = find_fitting_models(
            gpu,
            scenario,
            models=[model.name for model in selected],
            clipped_sizes=[size for size, number in given.items() if number is None],
            sort=sort,
            use_cache=not no_cache,
            on_progress=show,
        )
    view = replace(see_output(output), lists_all=list_all)
    print_or_write(RENDERERS[chosen](found, view), output, force=force)
