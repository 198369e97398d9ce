"""The place of a trace's rows, chosen and checked before any work is done for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moetool.errors import UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.fileless import NoTrace, TraceStream
from moetool.trace.writing.identity import Invitation, RunIdentity
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.share import TraceShare
from moetool.trace.writing.targets import check_target
from moetool.trace.writing.unfinished.resuming import check_same_run
from moetool.trace.writing.writer import TraceFile, TraceSink

_STDOUT = "-"


class TracePlace(Protocol):
    """The place of a run's rows, before it is opened."""

    def check(self, identity: RunIdentity) -> None:
        """Refuse a run that can't go on with what is there."""

    def open(self, metadata: TraceMetadata, identity: RunIdentity) -> TraceSink:
        """Return the sink of the rows."""


@dataclass(frozen=True)
class SinkChoice:
    """The chosen place of a run's rows.

    Attributes:
        target: The file that will hold them; None where they go to stdout or are not kept.
        keeps_rows: Whether they are written at all.
        replace_existing: Replace a trace that is there.
        resume: Go on with the parts of an unfinished run.
    """

    target: Path | None
    keeps_rows: bool = True
    replace_existing: bool = False
    resume: bool = False

    def check(self, identity: RunIdentity) -> None:
        """Check that a run may go on with what is there, before its model is loaded.

        Raises:
            UsageError: The parts are of another run.
        """
        if self.resume and self.target is not None:
            check_same_run(partial_folder(self.target), identity)

    def open(self, metadata: TraceMetadata, identity: RunIdentity | None = None) -> TraceSink:
        """Return the sink.

        Args:
            metadata: What is known before the run.
            identity: What another run must share to go on with this one; None if none may.

        Raises:
            UsageError: The target can't be written, or another run is writing it.
        """
        if self.target is not None:
            return TraceFile(
                self.target,
                metadata=metadata,
                replace_existing=self.replace_existing,
                identity=identity,
                resume=self.resume,
            )
        return TraceStream(sys.stdout.buffer) if self.keeps_rows else NoTrace()

    def join(self, metadata: TraceMetadata, invitation: Invitation) -> TraceShare:
        """Return the sink of a process that adds parts to a file which another has opened.

        Raises:
            UsageError: The folder of the parts is not to be seen here.
        """
        assert self.target is not None, "only a file can be shared"
        return TraceShare(self.target, metadata=metadata, invitation=invitation)


def choose_sink(
    output: Path | None,
    trace_format: str | None = None,
    *,
    replace_existing: bool = False,
    resume: bool = False,
    with_probabilities: bool = False,
    with_saliency: bool = False,
    inputs: Iterable[Path] = (),
    is_first: bool = True,
) -> SinkChoice:
    """Return where rows go, after checking that they can be written there.

    Args:
        output: A .parquet or .csv file, or `-` for CSV on stdout. None also means stdout, unless
            that is a terminal and no format was asked for: then no rows are kept.
        trace_format: `parquet` or `csv`; None for what the output implies.
        replace_existing: Replace a trace that is there, and the parts of an unfinished run.
        resume: Go on with the parts of an unfinished run.
        with_probabilities: The run writes probabilities as well, which takes a file.
        with_saliency: The run writes saliency as well, which takes a file.
        inputs: Files that the run reads; the output may not be one of them.
        is_first: Whether this is the first process of the run, or the only one. Only that one looks
            whether another run is writing there: to look, it locks a file for a moment, and the
            processes of one run would take each other for other runs.

    Raises:
        UsageError: The output can't be written, or contradicts another choice.
    """
    if resume and replace_existing:
        raise UsageError(
            "To resume a run and to start it over exclude each other.",
            hint="Leave out --force to go on with what is there, or --resume to discard it.",
        )
    target = None if output is None or str(output) == _STDOUT else output
    if target is None:
        if resume:
            raise UsageError(
                "Only a run that writes to a file can be resumed.",
                hint="Leave out --resume, or name the file with -o.",
            )
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
        resume=resume,
        with_probabilities=with_probabilities,
        with_saliency=with_saliency,
        inputs=inputs,
        is_running=not is_first,
    )
    if trace_format is not None and target.suffix != f".{trace_format}":
        raise UsageError(
            f"The format {trace_format} contradicts '{target}'.",
            hint="Leave out --format, or change the suffix of --output.",
        )
    return SinkChoice(target=target, replace_existing=replace_existing, resume=resume)
