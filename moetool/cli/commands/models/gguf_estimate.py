"""Run `moetool memory-estimate` on GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.failures import Failures
from moetool.cli.output import print_or_write, see_output

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.memory.serving.gguf.question import GgufQuestion
    from moetool.report.renderer import ReportFormat


def write_file_estimates(
    references: Mapping[str, ModelReference],
    question: GgufQuestion,
    failures: Failures,
    chosen: ReportFormat,
    output: Path | None,
    *,
    revision: str | None,
    force: bool,
) -> None:
    """Print or write what llama.cpp allocates for each file.

    Args:
        references: The files by name, in the order of the report.
        question: What is asked of each.
        failures: Gets those that can't be estimated.
        chosen: The format of the report.
        output: Its file; None for stdout.
        revision: Branch, tag or commit, for files on the Hub.
        force: Whether to replace the file.
    """
    from moetool.checkpoint.gguf.hub_files import open_named_gguf
    from moetool.memory.serving.gguf.estimate import estimate_gguf
    from moetool.report.memory.gguf import RENDERERS

    estimates = []
    for name, reference in references.items():
        with failures.keep(name):
            model = open_named_gguf(reference, revision=revision)
            estimates.append(estimate_gguf(name, model, question))
    failures.check(estimates)
    view = replace(see_output(output), failures=failures.list_failures())
    print_or_write(RENDERERS[chosen](estimates, view), output, force=force)
    failures.finish()
