"""Run `moetool memory-estimate` on GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moetool.cli.failures import Failures

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference
    from moetool.memory.serving.gguf.estimate import GgufEstimate, GgufQuestion
    from moetool.report.renderer import ReportFormat, View


@dataclass(frozen=True)
class FoundFiles:
    """The estimates of all files, and the files that failed."""

    estimates: Sequence[GgufEstimate]
    failures: Failures

    def render(self, chosen: ReportFormat, view: View) -> str:
        """Return the report."""
        from moetool.report.memory.gguf import RENDERERS

        view = replace(view, failures=self.failures.list_failures())
        return RENDERERS[chosen](self.estimates, view)


def estimate_files(
    asked: Sequence[tuple[str, ModelReference]], question: GgufQuestion, failures: Failures
) -> FoundFiles:
    """Return what llama.cpp allocates for each file."""
    from moetool.checkpoint.gguf.files import open_gguf
    from moetool.memory.serving.gguf.estimate import estimate_gguf

    estimates = []
    for name, reference in asked:
        with failures.keep(name):
            assert reference.path is not None
            estimates.append(estimate_gguf(name, open_gguf(reference.path), question))
    failures.check(estimates)
    return FoundFiles(estimates, failures)
