"""Run `moetool models`: the models that can be named without a network."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.catalogue.selection import ModelSort, SelectedKind
from moetool.cli.errors import speaks_errors
from moetool.cli.options.shared import ForceOption, FormatOption, OutputOption, QuietOption
from moetool.cli.options.values import parse_parameters
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import say

SUMMARY = "List the models known by name."
EXAMPLES = (
    "moetool models --family qwen --max-active 4B",
    "moetool models --max-total 30B --sort active",
    "moetool models --format csv -o models.csv",
)


@speaks_errors
def models(
    family: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only models with this in their name or Hub id."),
    ] = None,
    kind: Annotated[
        SelectedKind | None,
        typer.Option(
            "--kind", metavar="KIND", help="Only moe (Mixture-of-Experts) or dense models."
        ),
    ] = None,
    max_total: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest number of parameters, such as 30B."),
    ] = None,
    max_active: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest number of active parameters, such as 4B."),
    ] = None,
    sort: Annotated[
        ModelSort,
        typer.Option(metavar="ORDER", help="name, or the largest first by total or active."),
    ] = ModelSort.NAME,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the published models that can be named without a network.

    For each model: its short name, its Hub id, its vendor's own figures, and how it is counted
    if transformers has no class for it. Systems known only from reports are listed below. Limits
    and orders are by the vendors' figures.
    """
    from moetool.catalogue.published import read_published_models, read_reported_systems
    from moetool.catalogue.selection import select_models
    from moetool.report.models import RENDERERS, say_what_is_missing

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force)
    selection = select_models(
        read_published_models().values(),
        read_reported_systems().values(),
        family=family,
        kind=kind,
        max_total=parse_parameters(max_total, option="--max-total"),
        max_active=parse_parameters(max_active, option="--max-active"),
        sort=sort,
    )
    print_or_write(RENDERERS[chosen](selection, see_output(output)), output, force=force)
    if not quiet:
        say(say_what_is_missing(selection))
