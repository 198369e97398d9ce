"""Run `moetool plot parameters`: a model's parameters by component."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files
from moetool.cli.options.figures import COLUMN_WIDTH_IN, FigureOption, WidthOption
from moetool.cli.options.shared import (
    ForceOption,
    ModelsArgument,
    QuietOption,
    RevisionOption,
    TrustOption,
)
from moetool.cli.progress import show_status
from moetool.cli.writing.figures import check_figure, write_figure

SUMMARY = "Draw parameters by component."
EXAMPLES = (
    "moetool plot parameters mixtral-8x7b -o mixtral.svg",
    "moetool plot parameters mixtral-8x7b gpt-oss-20b -o models.pdf",
)


@speaks_errors
def parameters(
    models: ModelsArgument,
    output: FigureOption,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    width: WidthOption = COLUMN_WIDTH_IN,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the parameters of one or several models by component.

    Two bars for each model: all parameters, and those that a token runs.
    """
    from moetool.checkpoint.reference import resolve_model
    from moetool.inspection.inspect import inspect_model
    from moetool.report.figures.parameters import draw_parameters

    references = [resolve_model(model) for model in models]
    check_figure(output, width_in=width, force=force, inputs=list_model_files(references))
    inspected = []
    with show_status(is_quiet=quiet) as show:
        for model, reference in zip(models, references, strict=True):
            show(f"inspecting {model}")
            inspected.append(
                inspect_model(reference, revision=revision, trust_remote_code=trust_remote_code)
            )
    write_figure(draw_parameters(inspected, width_in=width), output, force=force)
