"""`moetool models`: which models can be named without a network, and what is said of them?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.options import ReportFormat, choose_report_format


@speaks_errors
def models(
    output_format: Annotated[ReportFormat | None, typer.Option("--format")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file, by default stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """List the published models that can be named without a network.

    For every model: its short name, its Hub id, its vendor's own figures, and how it is counted
    where transformers has no class for it. Systems known from reports alone stand below, as
    reported.
    """
    from moetool.catalogue.published import read_published_models, read_reported_systems
    from moetool.report.files import write_report
    from moetool.report.models import RENDERERS

    chosen = choose_report_format(output_format, output)
    published = list(read_published_models().values())
    reported = list(read_reported_systems().values())
    text = RENDERERS[chosen.value](published, reported)
    write_report(text, output, replace_existing=force)
