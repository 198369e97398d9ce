"""The share of one process in a trace that another process of the same run has opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import saying_what_failed
from moetool.trace.metadata import TraceMetadata
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.identity import Invitation
from moetool.trace.writing.partial import PartialFolder, partial_folder
from moetool.trace.writing.unfinished.part_files import count_rows
from moetool.trace.writing.writer import TraceFile


class TraceShare(TraceFile):
    """A trace to which this process adds parts, and which the first process finishes.

    Args:
        target: File that the first process will write.
        metadata: What is known before the run.
        invitation: From the first process, see `TraceFile.invite`.

    Raises:
        UsageError: The folder of the parts is not to be seen here.
    """

    def __init__(self, target: Path, *, metadata: TraceMetadata, invitation: Invitation) -> None:
        self.target = target
        self.partial = partial_folder(target)
        self._metadata = replace(metadata, complete=False)
        self._identity = invitation.identity
        self._folder = PartialFolder.join(target, holder=invitation.holder)
        self._replace_existing = invitation.may_replace
        self._is_shared = True
        self._pieces = self._open_pieces(TRACE_SCHEMA)
        with saying_what_failed(target):
            self._pieces.look_around()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with holding_interrupts():
            num_rows = count_rows(self.partial, self._identity) if error is not None else 0
            self._folder.release()
            if error is not None and num_rows:
                self._note_rows(error, num_rows, has_pieces=True)

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Leave the folder of the parts, which the first process will remove."""
        del metadata, saliency
        self._folder.release()
