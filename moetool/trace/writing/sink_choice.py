"""The place of a trace's rows, chosen and checked before any work is done for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moetool.errors import UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.fileless import NoTrace, TraceStream
from moetool.trace.writing.targets import check_target
from moetool.trace.writing.writer import TraceFile, TraceSink

_STDOUT = "-"


@dataclass(frozen=True)
class SinkChoice:
    """The chosen place of a run's rows.

    Attributes:
        target: The file that will hold them; None where they go to stdout or are not kept.
        keeps_rows: Whether they are written at all.
        replace_existing: Replace a trace that is there.
    """

    target: Path | None
    keeps_rows: bool = True
    replace_existing: bool = False

    def open(self, metadata: TraceMetadata) -> TraceSink:
        """Return the sink.

        Raises:
            UsageError: The target can't be written, or another run is writing it.
        """
        if self.target is not None:
            return TraceFile(self.target, metadata=metadata, replace_existing=self.replace_existing)
        return TraceStream(sys.stdout.buffer) if self.keeps_rows else NoTrace()


def choose_sink(
    output: Path | None,
    trace_format: str | None = None,
    *,
    replace_existing: bool = False,
    with_probabilities: bool = False,
    with_saliency: bool = False,
    inputs: Iterable[Path] = (),
) -> SinkChoice:
    """Return where rows go, after checking that they can be written there.

    Args:
        output: A .parquet or .csv file, or `-` for CSV on stdout. None also means stdout, unless
            that is a terminal and no format was asked for: then no rows are kept.
        trace_format: `parquet` or `csv`; None for what the output implies.
        replace_existing: Replace a trace that is there, and the parts of an unfinished run.
        with_probabilities: The run writes probabilities as well, which takes a file.
        with_saliency: The run writes saliency as well, which takes a file.
        inputs: Files that the run reads; the output may not be one of them.

    Raises:
        UsageError: The output can't be written, or contradicts another choice.
    """
    target = None if output is None or str(output) == _STDOUT else output
    if target is None:
        if with_probabilities:
            raise UsageError(
                "Probabilities are written next to the trace, so the trace must go to a file.",
                hint="Leave out --probabilities, or add -o trace.parquet.",
            )
        if with_saliency:
            raise UsageError(
                "Saliency is written next to the trace, so the trace must go to a file.",
                hint="Leave out --saliency, or add -o trace.parquet.",
            )
        if trace_format == "parquet":
            raise UsageError(
                "Parquet can't be written to stdout.",
                hint="Leave out --format, or add -o trace.parquet.",
            )
        is_unasked = output is None and trace_format is None and sys.stdout.isatty()
        return SinkChoice(target=None, keeps_rows=not is_unasked)
    check_target(
        target,
        replace_existing=replace_existing,
        with_probabilities=with_probabilities,
        with_saliency=with_saliency,
        inputs=inputs,
    )
    if trace_format is not None and target.suffix != f".{trace_format}":
        raise UsageError(
            f"The format {trace_format} contradicts '{target}'.",
            hint="Leave out --format, or change the suffix of --output.",
        )
    return SinkChoice(target=target, replace_existing=replace_existing)
