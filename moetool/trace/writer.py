"""From tables of rows to a trace: a file, or CSV on a stream.

A file appears under its own name only when the trace is complete. Until then its closed parts
lie in `<file>.partial/`, itself a trace marked `complete: false`; after an interrupt or a crash
they stay there.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import pyarrow as pa
import pyarrow.csv

from moetool.errors import UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.parts import PartWriter
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA, plain_schema

FILE_SUFFIXES = (".parquet", ".csv")
PROBABILITIES_SUFFIX = ".probabilities.parquet"


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

    Use as a context manager: left through an exception, it closes what it has as parts and adds
    a note to the exception that says where they are.

    Args:
        target: The file to write.
        metadata: What is known before the run; parts carry it with `complete: false`.
        replace_existing: Replace an existing file, and an earlier run's unfinished parts.

    Raises:
        UsageError: The target can't be written.
    """

    def __init__(
        self, target: Path, *, metadata: TraceMetadata, replace_existing: bool = False
    ) -> None:
        check_target(target, replace_existing=replace_existing)
        self.target = target
        self.partial = partial_folder(target)
        self._is_finished = False
        self._metadata = replace(metadata, complete=False)
        self._rows = PartWriter(self.partial, schema=TRACE_SCHEMA, footer=self._footer)
        self._probabilities = PartWriter(
            self.partial / "probabilities",
            schema=PROBABILITIES_SCHEMA,
            footer=self._footer,
        )
        if replace_existing:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or self._is_finished:
            return
        self._rows.flush()
        self._probabilities.flush()
        if self._rows.num_rows:
            error.add_note(
                f"what was traced until then: {self.partial} ({self._rows.num_rows:,} rows)"
            )
        else:
            shutil.rmtree(self.partial, ignore_errors=True)

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Collect rows, closing a part now and then."""
        self._rows.append(rows)
        if probabilities is not None:
            self._probabilities.append(probabilities)

    def describe(self, metadata: TraceMetadata) -> None:
        """Give later parts this metadata, still with `complete: false`."""
        self._metadata = replace(metadata, complete=False)

    def finish(self, metadata: TraceMetadata) -> None:
        """Write the complete trace to its place and remove the parts."""
        text = metadata.to_json()
        whole = self.partial / "whole"
        if self.target.suffix == ".csv":
            self._rows.merge_into_csv(whole)
            sidecar = self.partial / "whole.meta.json"
            sidecar.write_text(text, encoding="utf-8")
            sidecar.replace(sidecar_path(self.target))
        else:
            self._rows.merge_into_parquet(whole, footer=text)
        self._probabilities.flush()
        if self._probabilities.num_rows:
            scores = self.partial / "whole.probabilities"
            self._probabilities.merge_into_parquet(scores, footer=text)
            scores.replace(probabilities_path(self.target))
        else:
            probabilities_path(self.target).unlink(missing_ok=True)
        whole.replace(self.target)
        self._is_finished = True
        shutil.rmtree(self.partial)

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


def check_target(target: Path, *, replace_existing: bool) -> None:
    """Check that a trace can be written to a path, before any work is done for it.

    Raises:
        UsageError: The path exists, an earlier run left parts there, or its folder can't be used.
    """
    if target.suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"Can't tell the format of '{target}'.", hint="End the name in .parquet or .csv."
        )
    if target.is_dir():
        raise UsageError(f"'{target}' is a folder.", hint="Name a file in it.")
    for path in (target, sidecar_path(target), probabilities_path(target)):
        if path.exists() and not replace_existing:
            raise UsageError(f"'{path}' exists.", hint="Choose another name, or add --force.")
    partial = partial_folder(target)
    if partial.exists() and not replace_existing:
        raise UsageError(
            f"'{partial}' holds what an unfinished run traced.",
            hint="It can be read as a trace; add --force to discard it and start over.",
        )
    check_folder_of(target)


def check_folder_of(target: Path) -> None:
    """Check that a file can be made beside a path.

    Raises:
        UsageError: Its folder is none, or can't be written to.
    """
    if not target.parent.is_dir():
        raise UsageError(
            f"'{target.parent}' is not a folder.", hint="Create it first, or name another."
        )
    try:
        probe = target.with_name(f".{target.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"Can't write to '{target.parent}': {error.strerror}.",
            hint="Name a folder you may write to.",
        ) from error


def partial_folder(target: Path) -> Path:
    """Return the folder that holds an unfinished trace's parts."""
    return target.with_name(f"{target.name}.partial")


def probabilities_path(target: Path) -> Path:
    """Return the Parquet file beside a trace that holds its router probabilities."""
    return target.with_name(f"{target.stem}{PROBABILITIES_SUFFIX}")


def sidecar_path(target: Path) -> Path:
    """Return the JSON file beside a CSV trace that holds its metadata."""
    return target.with_name(f"{target.name}.meta.json")
