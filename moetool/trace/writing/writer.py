"""Sinks for the rows of a trace: a file, or CSV on a stream.

A file gets its name only when the trace is complete. Until then its closed parts lie in
`<file>.partial/`, itself a trace marked `complete: false`, and stay there after an interrupt or a
crash. The metadata of a CSV and the probabilities appear right after the trace that they belong to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
import pyarrow.csv

from moetool.errors import MoetoolError, ResumableInterrupt
from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import new_file, put_in_place, saying_what_failed
from moetool.trace.companions import (
    TRACE_KEY,
    find_companions,
    probabilities_path,
    saliency_path,
    sidecar_path,
    sign_saliency,
)
from moetool.trace.metadata import FOOTER_KEY, TraceMetadata
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA
from moetool.trace.writing.identity import Invitation, RunIdentity
from moetool.trace.writing.partial import WHOLE_NAMES, PartialFolder, partial_folder
from moetool.trace.writing.parts import PartWriter
from moetool.trace.writing.pieces import EncodedPiece, TraceBatch, TracePiece
from moetool.trace.writing.targets import check_target
from moetool.trace.writing.unfinished.finished import FinishedWindow
from moetool.trace.writing.unfinished.part_files import PROBABILITIES_NAME, count_rows
from moetool.trace.writing.unfinished.part_writing import PartFiles
from moetool.trace.writing.unfinished.resuming import may_replace
from moetool.trace.writing.unfinished.store import PieceStore
from moetool.wording import number_of


class TraceSink(Protocol):
    """A destination for the rows of a trace; a context manager."""

    def __enter__(self) -> Self:
        """Return the sink."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep the rows written so far if the run was broken off."""

    @property
    def is_overdue(self) -> bool:
        """Whether the batches that have ended since the last part are to be kept."""

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Take rows with `TRACE_SCHEMA`, and rows with `PROBABILITIES_SCHEMA` if recorded."""

    def describe(self, metadata: TraceMetadata) -> None:
        """Take what has become known about the trace since the sink was opened."""

    def list_finished(self) -> dict[int, FinishedWindow]:
        """Return the windows of this run that are on disk, by index, in order."""

    def known_metadata(self) -> TraceMetadata:
        """Return what the parts of this run on disk say about its routing."""

    def encode(self, piece: TracePiece) -> EncodedPiece:
        """Bring a piece into the sink's form; from any thread, in any order."""

    def commit(self, encoded: EncodedPiece) -> None:
        """Take a piece; from one thread, in the order of the rows."""

    def keep_batch(self, batch: TraceBatch) -> None:
        """Take a batch of a window that will come again in the window's pieces."""

    def kept_batches(self, window: int) -> dict[int, TraceBatch]:
        """Return the batches of a window that were kept, by index."""

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Take the metadata of the complete trace, and its saliency; nothing is written after."""


class TraceFile:
    """A trace that becomes a `.parquet` or `.csv` file.

    Use it as a context manager. If it is left before the trace is finished, it closes its rows as
    parts, and adds a note to the exception, if there is one, that says where they are.

    Args:
        target: File to write.
        metadata: What is known before the run; parts carry it with `complete: false`.
        replace_existing: Replace an existing file, and unfinished parts of an earlier run.
        schema: Schema of the rows: `TRACE_SCHEMA`, or some of its columns.
        keeps_parts: Keep the parts if the trace is left before it is finished.
        identity: What another run must share to go on with the parts; None if none may.
        resume: Go on with the parts of an earlier run.

    Raises:
        UsageError: The target cannot be written, another run is writing it, or, to resume, there
            are no parts of a run of the same identity.
    """

    def __init__(
        self,
        target: Path,
        *,
        metadata: TraceMetadata,
        replace_existing: bool = False,
        schema: pa.Schema = TRACE_SCHEMA,
        keeps_parts: bool = True,
        identity: RunIdentity | None = None,
        resume: bool = False,
    ) -> None:
        check_target(target, replace_existing=replace_existing, resume=resume)
        self.target = target
        self.partial = partial_folder(target)
        self._replace_existing = may_replace(self.partial) if resume else replace_existing
        self._keeps_parts = keeps_parts
        self._is_finished, self._is_shared = False, False
        self._metadata = replace(metadata, complete=False)
        with saying_what_failed(target):
            self._folder = PartialFolder(target, discard=replace_existing, resume=resume)
        self._identity = identity or RunIdentity.unique()
        self._rows = self._open_parts(self.partial, schema)
        self._probabilities = self._open_parts(
            self.partial / PROBABILITIES_NAME, PROBABILITIES_SCHEMA
        )
        self._pieces = self._open_pieces(schema)
        if resume:
            try:
                with saying_what_failed(target):
                    self._pieces.take_over()
            except BaseException:
                self._folder.release()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_finished:
            return
        with holding_interrupts():
            self._rows.give_up_joining()
            # A write that failed before may fail again; closed parts stay.
            with suppress(OSError, MoetoolError):
                if self._keeps_parts:
                    self._rows.flush()
                    self._probabilities.flush()
            of_all = count_rows(self.partial, self._identity) if self._is_shared else None
            num_rows = self._rows.num_rows + (of_all or self._pieces.num_rows)
            if not (self._keeps_parts and num_rows):
                self._folder.remove()
                return
            self._folder.release()
            if error is not None and self.partial.is_dir():
                self._note_rows(error, num_rows, has_pieces=num_rows > self._rows.num_rows)

    def _note_rows(self, error: BaseException, num_rows: int, *, has_pieces: bool) -> None:
        """Add where the rows are, and how to go on if they are pieces of windows."""
        note = f"rows traced so far: {self.partial} ({number_of(num_rows, 'row')})"
        if not has_pieces:
            error.add_note(note)
        elif not isinstance(error, KeyboardInterrupt):
            error.add_note(f"{note}; --resume goes on with them")
        else:
            interrupt = ResumableInterrupt(
                "Interrupted.",
                hint="Run the same command with --resume to go on, or with --force to start over.",
            )
            interrupt.add_note(note)
            raise interrupt from error

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Collect rows, and close a part now and then.

        Raises:
            UsageError: A part cannot be written, or the folder of the parts is gone.
        """
        with saying_what_failed(self.target):
            self._rows.append(rows)
            if probabilities is not None:
                if not self._probabilities.num_parts:
                    self._folder.check_held()
                    self._probabilities.folder.mkdir(exist_ok=True)
                self._probabilities.append(probabilities)

    @property
    def is_overdue(self) -> bool:
        """Whether so much time has passed since the last part that batches are to be kept."""
        return self._pieces.is_overdue

    def encode(self, piece: TracePiece) -> EncodedPiece:
        """Write a piece as a part; from any thread, several at once.

        Raises:
            UsageError: The part can't be written, or the folder of the parts is gone.
        """
        with saying_what_failed(self.target):
            return self._pieces.encode(piece)

    def commit(self, encoded: EncodedPiece) -> None:
        """Take a piece; after a window's last, batches kept of it go, and its rows are joined.

        Raises:
            UsageError: The folder of the parts is gone.
        """
        with saying_what_failed(self.target):
            self._pieces.commit(encoded)
            if encoded.is_last and not self._is_shared and self.target.suffix == ".parquet":
                parts = self._pieces.list_paths(encoded, from_start=not self._rows.is_joining)
                self._rows.join_ahead(parts, self.partial / WHOLE_NAMES[0])

    def keep_batch(self, batch: TraceBatch) -> None:
        """Write a batch as a part that lasts until its window's pieces are there.

        Raises:
            UsageError: The part can't be written, or the folder of the parts is gone.
        """
        with saying_what_failed(self.target):
            self._pieces.keep_batch(batch)

    def kept_batches(self, window: int) -> dict[int, TraceBatch]:
        """Return the batches that were kept of a window, by index."""
        with saying_what_failed(self.target):
            return self._pieces.kept_batches(window)

    def list_finished(self) -> dict[int, FinishedWindow]:
        """Return the windows of this run of which all parts are on disk, by index, in order."""
        with saying_what_failed(self.target):
            return self._pieces.list_finished()

    def invite(self) -> Invitation:
        """Return what other processes of this run need to write parts as well."""
        self._is_shared = True
        return Invitation(self._folder.holder, self._identity, self._replace_existing)

    def known_metadata(self) -> TraceMetadata:
        """Return what the parts on disk say about routing: the layers, and the score function."""
        with saying_what_failed(self.target):
            return self._pieces.known_metadata()

    def flush(self) -> None:
        """Close the rows collected so far as a part."""
        with saying_what_failed(self.target):
            self._rows.flush()

    def describe(self, metadata: TraceMetadata) -> None:
        """Give later parts this metadata, still with `complete: false`."""
        self._metadata = replace(metadata, complete=False)

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Write the complete trace to its place and remove the parts.

        Raises:
            UsageError: The trace cannot be written; the parts stay.
        """
        with saying_what_failed(self.target), self._folder.emptied_of_wholes():
            self._rows.flush()
            self._probabilities.flush()
            self._adopt_pieces()
            places = self._merge(metadata.to_footer(), saliency)
            with holding_interrupts():
                self._put_in_place(places)
                self._is_finished = True
                self._folder.remove()

    def _adopt_pieces(self) -> None:
        for part in self._pieces.list_whole():
            self._rows.adopt(part.path, num_rows=part.num_rows)
            probabilities = part.find_companion(PROBABILITIES_NAME)
            if probabilities is not None:
                self._probabilities.adopt(probabilities, num_rows=part.num_rows)

    def _merge(self, footer: dict[bytes, bytes], saliency: bytes | None) -> list[tuple[Path, Path]]:
        """Return the finished files and the place of each, the trace first."""
        whole, sidecar, scores, outputs = (self.partial / name for name in WHOLE_NAMES)
        places = [(whole, self.target)]
        if self.target.suffix == ".csv":
            self._rows.merge_into_csv(whole)
            with new_file(sidecar) as file:
                file.write(footer[FOOTER_KEY])
            places.append((sidecar, sidecar_path(self.target)))
        else:
            self._rows.merge_into_parquet(whole, footer=footer)
        if self._probabilities.num_rows:
            footer = {**footer, TRACE_KEY: os.fsencode(self.target.name)}
            self._probabilities.merge_into_parquet(scores, footer=footer)
            places.append((scores, probabilities_path(self.target)))
        if saliency is not None:
            with new_file(outputs) as file:
                file.write(sign_saliency(saliency, self.target))
            places.append((outputs, saliency_path(self.target)))
        return places

    def _put_in_place(self, places: Sequence[tuple[Path, Path]]) -> None:
        """Give the finished files their names, so that those in place always belong to one trace.

        Companions of the old trace go before it does; those of the new one come after it.
        """
        self._folder.check_held()
        check_target(
            self.target,
            replace_existing=self._replace_existing,
            with_probabilities=self._probabilities.num_rows > 0,
            with_saliency=any(path == saliency_path(self.target) for _, path in places),
            is_running=True,
        )
        for path in find_companions(self.target):
            path.unlink()
        for unfinished, path in places:
            put_in_place(unfinished, path, replace_existing=self._replace_existing)

    def _open_pieces(self, schema: pa.Schema) -> PieceStore:
        return PieceStore(
            PartFiles(
                self._folder,
                schema=schema,
                identity=self._identity,
                footer=self._footer,
                may_replace=self._replace_existing,
            )
        )

    def _open_parts(self, folder: Path, schema: pa.Schema) -> PartWriter:
        return PartWriter(
            folder,
            schema=schema,
            footer=self._footer,
            check_folder=self._folder.check_held,
            run=self._identity.token,
        )

    def _footer(self) -> dict[bytes, bytes]:
        return self._metadata.to_footer()
