"""Run `moetool inspect`: what a model consists of, and how much of it a token uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from moetool.checkpoint.subject import AskedSource
from moetool.cli.errors import speaks_errors
from moetool.cli.failures import Failures
from moetool.cli.inputs import list_model_files
from moetool.cli.options.shared import (
    FLAG,
    ForceOption,
    FormatOption,
    ModelsArgument,
    OutputOption,
    QuietOption,
    RevisionOption,
    TrustOption,
)
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status
from moetool.errors import UsageError

SUMMARY = "Count parameters, total and active."
EXAMPLES = (
    "moetool inspect mixtral-8x7b",
    "moetool inspect mixtral-8x7b olmoe-1b-7b --summary -o models.csv",
    "moetool inspect ./my-model --per-layer --format csv -o layers.csv",
)

_PATIENCE_S = 1.0


@speaks_errors
def inspect(
    models: ModelsArgument,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", metavar=FLAG, help="Also show every layer's components.")
    ] = False,
    summary: Annotated[
        bool,
        typer.Option("--summary", metavar=FLAG, help="Show one row or column for each model."),
    ] = False,
    source: Annotated[
        AskedSource,
        typer.Option(
            "--source",
            metavar="SOURCE",
            case_sensitive=False,
            help="headers: only the headers of the weight files, without torch. skeleton: the "
            "model that transformers builds from the configuration. auto: both, compared.",
        ),
    ] = AskedSource.AUTO,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a model's anatomy and its exact parameter counts, total and active.

    Weights are never read or downloaded, only the headers of their files. Several models are
    shown side by side. CSV has one row per layer and component, or per model with --summary.
    """
    from moetool.inspection.inspect import inspect_model
    from moetool.report.inspect import data
    from moetool.report.inspect import summary as summaries

    if summary and per_layer:
        raise UsageError(
            "--summary shows one row for each model, and --per-layer every layer.",
            hint="Leave one of them out.",
        )
    chosen = choose_report_format(output_format, output)
    failures = Failures(models)
    references = failures.resolve()
    check_report_path(output, force=force, inputs=list_model_files(references.values()))
    inspected = []
    # Most single models take less time than a line takes to read.
    delay_s = _PATIENCE_S if len(models) == 1 else 0
    with show_status(is_quiet=quiet, delay_s=delay_s) as show:
        for model in filter(references.__contains__, models):
            show(f"inspecting {model}")
            with failures.keep(model):
                inspected.append(
                    inspect_model(
                        references[model],
                        source=source,
                        revision=revision,
                        trust_remote_code=trust_remote_code,
                    )
                )
    failures.check(inspected)
    view = replace(see_output(output), per_layer=per_layer, failures=failures.list_failures())
    renderers = summaries.RENDERERS if summary else data.RENDERERS
    print_or_write(renderers[chosen](inspected, view), output, force=force)
    failures.finish()
