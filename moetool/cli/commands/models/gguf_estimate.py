"""Run `moetool memory-estimate` on GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moetool.cli.failures import Failures
from moetool.cli.writing.estimates import EstimateFiles

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.memory.serving.gguf.question import GgufQuestion


def write_file_estimates(
    references: Mapping[str, ModelReference],
    question: GgufQuestion,
    failures: Failures,
    files: EstimateFiles,
    *,
    revision: str | None,
) -> None:
    """Print or write what llama.cpp allocates for each file.

    Args:
        references: The files by name, in the order of the report.
        question: What is asked of each.
        failures: Gets those that can't be estimated.
        files: Of the report.
        revision: Branch, tag or commit, for files on the Hub.
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
    files.write_report(RENDERERS, estimates, failures)
