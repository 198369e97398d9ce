"""Sinks of a trace that is not written to a file: a stream, memory, or nothing."""

from __future__ import annotations

from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa

from moetool.trace.metadata import TraceMetadata
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.csv_text import csv_bytes, csv_header


class _KeepsNothing:
    """Base of the sinks that have nothing to save when a run is broken off."""

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
        """Ignore the metadata."""


class TraceStream(_KeepsNothing):
    """A trace as CSV on a binary stream, row by row as they come; without metadata."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._stream.write(csv_header(TRACE_SCHEMA))

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Write rows to the stream."""
        assert probabilities is None, "a stream carries one table"
        self._stream.write(csv_bytes(rows))
        self._stream.flush()

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Flush the stream."""
        del metadata, saliency
        self._stream.flush()


class KeptTrace(_KeepsNothing):
    """A trace in memory.

    Attributes:
        metadata: The latest that is known.
        tables: Rows with `TRACE_SCHEMA`.
        probabilities: Rows with `PROBABILITIES_SCHEMA`; empty if they are not recorded.
        saliency: The file of the experts' saliency, if it is recorded.
    """

    def __init__(self, metadata: TraceMetadata) -> None:
        self.metadata = metadata
        self.tables: list[pa.Table] = []
        self.probabilities: list[pa.Table] = []
        self.saliency: bytes | None = None

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Keep the rows."""
        self.tables.append(rows)
        if probabilities is not None:
            self.probabilities.append(probabilities)

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Take the metadata of the complete trace."""
        self.metadata, self.saliency = metadata, saliency


class NoTrace(_KeepsNothing):
    """A sink that keeps no rows, for a run of which only the summary is wanted."""

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Drop the rows."""

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Do nothing."""
