"""From tables of rows to a trace: a file, or CSV on a stream.

A file appears under its own name only when the trace is complete. Until then its closed parts
lie in `<file>.partial/`, itself a trace marked `complete: false`; after an interrupt or a crash
they stay there. The metadata beside a CSV, and the probabilities, appear right after the trace that
they belong to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import pyarrow as pa
import pyarrow.csv

from moetool.errors import MoetoolError, UsageError
from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import (
    check_names,
    check_target_file,
    new_file,
    put_in_place,
    saying_what_failed,
)
from moetool.trace.companions import (
    TRACE_KEY,
    check_companions,
    find_companions,
    probabilities_path,
    sidecar_path,
)
from moetool.trace.metadata import FOOTER_KEY, TraceMetadata
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA, plain_schema
from moetool.trace.writing.partial import (
    PROBABILITIES_NAME,
    WHOLE_NAMES,
    PartialFolder,
    check_partial_folder,
    partial_folder,
)
from moetool.trace.writing.parts import PartWriter

FILE_SUFFIXES = (".parquet", ".csv")


class TraceSink(Protocol):
    """Where the rows of a trace go; a context manager."""

    def __enter__(self) -> Self:
        """Return the sink."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep what was written if the run broke off."""

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Take rows with `TRACE_SCHEMA`, and those with `PROBABILITIES_SCHEMA` if recorded."""

    def describe(self, metadata: TraceMetadata) -> None:
        """Take what has become known of the trace since the sink was opened."""

    def finish(self, metadata: TraceMetadata) -> None:
        """Take the metadata of the complete trace; nothing is written after this."""


class TraceFile:
    """A trace on its way to a `.parquet` or `.csv` file.

    Use as a context manager: left before the trace is finished, it closes what it has as parts,
    and adds a note that says where they are to the exception, if there is one.

    Args:
        target: The file to write.
        metadata: What is known before the run; parts carry it with `complete: false`.
        replace_existing: Replace an existing file, and an earlier run's unfinished parts.

    Raises:
        UsageError: The target can't be written, or another run is writing it.
    """

    def __init__(
        self, target: Path, *, metadata: TraceMetadata, replace_existing: bool = False
    ) -> None:
        check_target(target, replace_existing=replace_existing)
        self.target = target
        self.partial = partial_folder(target)
        self._replace_existing = replace_existing
        self._is_finished = False
        self._metadata = replace(metadata, complete=False)
        with saying_what_failed(target):
            self._folder = PartialFolder(target, discard=replace_existing)
        self._rows = self._open_parts(self.partial, TRACE_SCHEMA)
        self._probabilities = self._open_parts(
            self.partial / PROBABILITIES_NAME, PROBABILITIES_SCHEMA
        )

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
            # What could not be written before may fail again; the parts that are closed stay.
            with suppress(OSError, MoetoolError):
                self._rows.flush()
                self._probabilities.flush()
            if not self._rows.num_rows:
                self._folder.remove()
                return
            self._folder.release()
            if error is not None and self.partial.is_dir():
                error.add_note(
                    f"what was traced until then: {self.partial} ({self._rows.num_rows:,} rows)"
                )

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Collect rows, closing a part now and then.

        Raises:
            UsageError: A part can't be written, or the folder of the parts is gone.
        """
        with saying_what_failed(self.target):
            self._rows.append(rows)
            if probabilities is not None:
                if not self._probabilities.num_parts:
                    self._folder.check_held()
                    self._probabilities.folder.mkdir(exist_ok=True)
                self._probabilities.append(probabilities)

    def describe(self, metadata: TraceMetadata) -> None:
        """Give later parts this metadata, still with `complete: false`."""
        self._metadata = replace(metadata, complete=False)

    def finish(self, metadata: TraceMetadata) -> None:
        """Write the complete trace to its place and remove the parts.

        Raises:
            UsageError: The trace can't be written; the parts stay.
        """
        with saying_what_failed(self.target), self._folder.emptied_of_wholes():
            self._rows.flush()
            self._probabilities.flush()
            places = self._merge(metadata.to_json().encode(errors="backslashreplace"))
            with holding_interrupts():
                self._put_in_place(places)
                self._is_finished = True
                self._folder.remove()

    def _merge(self, metadata: bytes) -> list[tuple[Path, Path]]:
        """Return the finished files and where each is to go, the trace first."""
        whole, sidecar, scores = (self.partial / name for name in WHOLE_NAMES)
        places = [(whole, self.target)]
        if self.target.suffix == ".csv":
            self._rows.merge_into_csv(whole)
            with new_file(sidecar) as file:
                file.write(metadata)
            places.append((sidecar, sidecar_path(self.target)))
        else:
            self._rows.merge_into_parquet(whole, footer={FOOTER_KEY: metadata})
        if self._probabilities.num_rows:
            footer = {FOOTER_KEY: metadata, TRACE_KEY: os.fsencode(self.target.name)}
            self._probabilities.merge_into_parquet(scores, footer=footer)
            places.append((scores, probabilities_path(self.target)))
        return places

    def _put_in_place(self, places: Sequence[tuple[Path, Path]]) -> None:
        """Give the finished files their names, so that what lies there is always of one trace.

        What goes with the old trace goes before it does; what goes with the new one comes after.
        """
        self._folder.check_held()
        check_target(
            self.target,
            replace_existing=self._replace_existing,
            with_probabilities=self._probabilities.num_rows > 0,
            is_running=True,
        )
        for path in find_companions(self.target):
            path.unlink()
        for unfinished, path in places:
            put_in_place(unfinished, path, replace_existing=self._replace_existing)

    def _open_parts(self, folder: Path, schema: pa.Schema) -> PartWriter:
        return PartWriter(
            folder, schema=schema, footer=self._footer, check_folder=self._folder.check_held
        )

    def _footer(self) -> str:
        return self._metadata.to_json()


class _KeepsNothing:
    """What sinks share that have nothing to save when a run breaks off."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def describe(self, metadata: TraceMetadata) -> None:
        """Keep nothing of it."""


class TraceStream(_KeepsNothing):
    """A trace as CSV on a binary stream, row by row as it comes; without metadata."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._schema = plain_schema(TRACE_SCHEMA)
        self._options = pa.csv.WriteOptions(include_header=False)
        header = ",".join(f'"{name}"' for name in self._schema.names)
        self._stream.write(f"{header}\n".encode())

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Write rows to the stream."""
        assert probabilities is None, "a stream carries one table"
        buffer = pa.BufferOutputStream()
        pa.csv.write_csv(rows.cast(self._schema), buffer, self._options)
        self._stream.write(buffer.getvalue())
        self._stream.flush()

    def finish(self, metadata: TraceMetadata) -> None:
        """Flush the stream."""
        del metadata
        self._stream.flush()


class NoTrace(_KeepsNothing):
    """Takes rows and keeps none, for a run whose summary is all that is wanted."""

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Drop the rows."""

    def finish(self, metadata: TraceMetadata) -> None:
        """Do nothing."""


def list_places(target: Path) -> list[Path]:
    """Return every path that a run may write for a trace at a target."""
    return [
        target,
        sidecar_path(target),
        probabilities_path(target),
        partial_folder(target),
    ]


def check_target(
    target: Path,
    *,
    replace_existing: bool,
    with_probabilities: bool = False,
    inputs: Iterable[Path] = (),
    is_running: bool = False,
) -> None:
    """Check that a trace can be written to a path, before any work is done for it.

    Args:
        target: Where the trace is to go.
        replace_existing: Accept a trace that is there, and what an unfinished run left.
        with_probabilities: The run writes probabilities as well.
        inputs: Files that the run reads.
        is_running: The run has taken the folder of the parts.

    Raises:
        UsageError: The path exists, an earlier run left parts there, another run writes there, or
            its folder can't be used.
    """
    if target.suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"Can't tell the format of '{target}'.", hint="End the name in .parquet or .csv."
        )
    check_target_file(target, replace_existing=replace_existing, inputs=inputs)
    check_names(
        [
            partial_folder(target),
            *([sidecar_path(target)] if target.suffix == ".csv" else []),
            *([probabilities_path(target)] if with_probabilities else []),
        ]
    )
    check_companions(
        target, replace_existing=replace_existing, with_probabilities=with_probabilities
    )
    if not is_running:
        with saying_what_failed(target):
            check_partial_folder(target, discard=replace_existing)
