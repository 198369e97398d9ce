"""Sinks of a trace that is not written to a file: a stream, memory, or nothing."""

from __future__ import annotations

from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa

from moetool.trace.metadata import TraceMetadata
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.formats.csv_text import csv_bytes, csv_header
from moetool.trace.writing.pieces import EncodedPiece, TraceBatch, TracePiece, encode_as
from moetool.trace.writing.unfinished.finished import FinishedWindow


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

    @property
    def is_overdue(self) -> bool:
        """False: batches of a window under way are not kept."""
        return False

    def describe(self, metadata: TraceMetadata) -> None:
        """Ignore the metadata."""

    def list_finished(self) -> dict[int, FinishedWindow]:
        """Return nothing: no earlier run left a window."""
        return {}

    def known_metadata(self) -> TraceMetadata:
        """Return empty metadata: nothing is on disk."""
        return TraceMetadata()

    def keep_batch(self, batch: TraceBatch) -> None:
        """Drop the batch."""

    def kept_batches(self, window: int) -> dict[int, TraceBatch]:
        """Return nothing."""
        del window
        return {}


class TraceStream(_KeepsNothing):
    """A trace as CSV on a binary stream, row by row as they come; without metadata."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._stream.write(csv_header(TRACE_SCHEMA))

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Write rows to the stream."""
        assert probabilities is None, "a stream carries one table"
        self._write(csv_bytes(rows))

    def encode(self, piece: TracePiece) -> EncodedPiece:
        """Return a piece as bytes of CSV; from any thread."""
        assert piece.probabilities is None, "a stream carries one table"
        return encode_as(piece, content=csv_bytes(piece.rows))

    def commit(self, encoded: EncodedPiece) -> None:
        """Write the bytes of a piece to the stream."""
        self._write(encoded.content)

    def _write(self, content: bytes | pa.Buffer) -> None:
        self._stream.write(content)
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

    def encode(self, piece: TracePiece) -> EncodedPiece:
        """Return the piece as it is."""
        return encode_as(piece, kept=piece)

    def commit(self, encoded: EncodedPiece) -> None:
        """Keep the rows of a piece."""
        assert encoded.kept is not None
        self.write(encoded.kept.rows, encoded.kept.probabilities)

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Take the metadata of the complete trace."""
        self.metadata, self.saliency = metadata, saliency


class NoTrace(_KeepsNothing):
    """A sink that keeps no rows, for a run of which only the summary is wanted."""

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Drop the rows."""

    def encode(self, piece: TracePiece) -> EncodedPiece:
        """Drop the rows of a piece, and return its facts."""
        return encode_as(piece)

    def commit(self, encoded: EncodedPiece) -> None:
        """Do nothing."""

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Do nothing."""
