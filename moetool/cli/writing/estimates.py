"""Write estimates of memory, and receipts of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from moetool.cli.failures import Failures
from moetool.cli.output import (
    check_report_path,
    choose_report_format,
    print_or_write,
    see_output,
)
from moetool.errors import UsageError
from moetool.output.targets import check_target_file
from moetool.report.renderer import ReportFormat, View

if TYPE_CHECKING:
    from moetool.memory.result import Estimate

_Estimate = TypeVar("_Estimate")


@dataclass(frozen=True)
class EstimateFiles:
    """Files of a report on memory that is about to be made.

    Attributes:
        report_format: Table, JSON or CSV.
        output: Of the report; None for stdout.
        save: The file for receipts; None for none.
        force: Whether files are replaced.
    """

    report_format: ReportFormat
    output: Path | None
    save: Path | None
    force: bool

    def write(self, estimates: Sequence[Estimate], failures: Failures) -> None:
        """Write estimates and receipts, and end as the failures say."""
        from moetool.report.memory.data import RENDERERS

        if self.save is not None:
            from moetool.memory.receipts.saving import save_receipts

            save_receipts(estimates, self.save, replace_existing=self.force)
        self.write_report(RENDERERS, estimates, failures)

    def write_report(
        self,
        renderers: Mapping[ReportFormat, Callable[[Sequence[_Estimate], View], str]],
        estimates: Sequence[_Estimate],
        failures: Failures,
    ) -> None:
        """Print estimates or write them to a file, and end as the failures say.

        Args:
            renderers: By format.
            estimates: At least one.
            failures: The models without an estimate, which the report names.
        """
        view = replace(see_output(self.output), failures=failures.list_failures())
        text = renderers[self.report_format](estimates, view)
        print_or_write(text, self.output, force=self.force)
        failures.finish()


def choose_files(
    output: Path | None,
    output_format: ReportFormat | None,
    save: Path | None,
    *,
    measure: bool,
    force: bool,
    inputs: Iterable[Path],
) -> EstimateFiles:
    """Return the files of a report, after checking that they can be written.

    Args:
        output: Of the report.
        output_format: As it was asked for.
        save: The file for receipts.
        measure: Whether anything is measured.
        force: Replace existing files.
        inputs: Files that the command reads.

    Raises:
        UsageError: One can't be written, nothing is measured for a receipt, or both are the same.
    """
    inputs = list(inputs)
    report_format = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=inputs)
    if save is not None:
        if not measure:
            raise UsageError(
                "A receipt holds a measurement, and nothing is measured.",
                hint="Add --measure, or leave out --save.",
            )
        if output is not None and save.absolute() == output.absolute():
            raise UsageError(f"'{save}' is named by --output too.", hint="Name two files.")
        check_target_file(save, replace_existing=force, inputs=inputs)
    return EstimateFiles(report_format, output, save, force)
