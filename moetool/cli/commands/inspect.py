"""`moetool inspect`: what is in a model, and how much of it does a token run?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from moetool.checkpoint.subject import AskedSource
from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_model_files
from moetool.cli.options import ReportFormat, choose_report_format
from moetool.printable import printable


@speaks_errors
def inspect(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders, config.json files, Hub ids (org/name), catalogue names "
            "(see `moetool models`), or 'demo'.",
            show_default=False,
        ),
    ],
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also every layer's components.")
    ] = False,
    source: Annotated[
        AskedSource,
        typer.Option(
            help="headers: the weight files' headers alone, without torch. skeleton: the model "
            "that transformers builds from the configuration. auto: both, compared."
        ),
    ] = AskedSource.AUTO,
    output_format: Annotated[ReportFormat | None, typer.Option("--format")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file, by default stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code from the checkpoint.")
    ] = False,
) -> None:
    """Show a model's anatomy and its exact parameter counts, total and active.

    Weights are never read or downloaded: of files only the headers are. Several models are shown
    side by side. CSV has one row for every layer and component.
    """
    from moetool.checkpoint.reference import resolve_model
    from moetool.inspection.inspect import inspect_model
    from moetool.report.files import check_report_path, write_report
    from moetool.report.inspect.data import RENDERERS

    chosen = choose_report_format(output_format, output)
    references = [resolve_model(model) for model in models]
    check_report_path(output, replace_existing=force, inputs=list_model_files(references))
    inspected = []
    with _naming_on_terminal(num_models=len(references)) as name:
        for reference in references:
            name(reference.text)
            inspected.append(
                inspect_model(
                    reference,
                    source=source,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                )
            )
    text = RENDERERS[chosen.value](inspected, per_layer=per_layer)
    write_report(text, output, replace_existing=force)


@contextmanager
def _naming_on_terminal(*, num_models: int) -> Iterator[Callable[[str], None]]:
    """Yield what shows the model at hand, if there are several and stderr is a terminal."""
    if num_models == 1 or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda name: status.update(Text(printable(f"inspecting {name}")))
