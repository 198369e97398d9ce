"""The place of a trace that several processes write together."""

from __future__ import annotations

import sys

from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.sink_choice import SinkChoice
from moetool.trace.writing.writer import TraceFile
from moetool.tracing.processes.processes import Processes


class SharedPlace:
    """A file of rows that the first process opens, and to which all add parts.

    Args:
        choice: The file.
        processes: All of them use the place in the same order.
    """

    def __init__(self, choice: SinkChoice, processes: Processes) -> None:
        self._choice = choice
        self._processes = processes

    def check(self, identity: RunIdentity) -> None:
        """Check that all processes run the same, and may go on with what is there.

        Raises:
            UsageError: They don't, or the parts are of another run.
            LostProcessError: Another process has failed.
        """
        self._choice.check(identity)
        self._processes.agree(identity.values)

    def open(self, metadata: TraceMetadata, identity: RunIdentity) -> TraceFile:
        """Return the sink of the rows, once all processes have theirs.

        Raises:
            UsageError: The target can't be written, another run is writing it, or a process
                doesn't see its folder.
            LostProcessError: Another process has failed.
        """
        if not self._processes.is_first:
            invitation = self._processes.receive()
            return self._when_all_have(self._choice.join(metadata, invitation))
        sink = self._choice.open(metadata, identity)
        assert isinstance(sink, TraceFile), "only a file can be shared"
        return self._when_all_have(sink)

    def _when_all_have(self, sink: TraceFile) -> TraceFile:
        try:
            if self._processes.is_first:
                self._processes.broadcast(sink.invite())
            self._processes.barrier()
        except BaseException:
            sink.__exit__(*sys.exc_info())
            raise
        return sink


def share_place(
    choice: SinkChoice, processes: Processes, *, plan: str | None
) -> SinkChoice | SharedPlace:
    """Return a run's place: shared if several processes write it.

    Args:
        choice: The place.
        processes: This process and those that run the same.
        plan: The plan under which they share one model, of which the first writes the trace; None if each
            has its own.
    """
    return SharedPlace(choice, processes) if processes.are_several and plan is None else choice
