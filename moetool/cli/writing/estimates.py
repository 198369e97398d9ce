"""Write estimates of memory, and receipts of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.failures import Failures
from moetool.cli.output import print_or_write, see_output
from moetool.report.renderer import ReportFormat

if TYPE_CHECKING:
    from moetool.memory.result import Estimate


def write_estimates(
    estimates: Sequence[Estimate],
    failures: Failures,
    output_format: ReportFormat,
    output: Path | None,
    *,
    save: Path | None,
    force: bool,
) -> None:
    """Print estimates or write them to a file.

    Args:
        failures: The models without an estimate, which the report names.
        save: The file for receipts; None for none.
        force: Replace existing files.
    """
    from moetool.report.memory.data import RENDERERS

    if save is not None:
        from moetool.memory.receipts.saving import save_receipts

        save_receipts(estimates, save, replace_existing=force)
    view = replace(see_output(output), failures=failures.list_failures())
    print_or_write(RENDERERS[output_format](estimates, view), output, force=force)
