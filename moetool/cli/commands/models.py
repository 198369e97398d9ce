"""Run `moetool models`: the models that can be named without a network."""

from __future__ import annotations

from moetool.cli.errors import speaks_errors
from moetool.cli.options.shared import ForceOption, FormatOption, OutputOption, QuietOption
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output

EXAMPLES = ("moetool models", "moetool models --format csv -o models.csv")


@speaks_errors
def models(
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    # Scripts pass it to every command; this one has nothing to silence.
    _quiet: QuietOption = False,
) -> None:
    """List the published models that can be named without a network.

    For each model: its short name, its Hub id, its vendor's own figures, and how it is counted
    if transformers has no class for it. Systems known only from reports are listed below.
    """
    from moetool.catalogue.published import read_published_models, read_reported_systems
    from moetool.report.models import RENDERERS, Catalogue

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force)
    catalogue = Catalogue(
        models=list(read_published_models().values()),
        systems=list(read_reported_systems().values()),
    )
    print_or_write(RENDERERS[chosen](catalogue, see_output(output)), output, force=force)
