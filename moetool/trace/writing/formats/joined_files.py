"""Join Parquet files by their bytes, without decoding a row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.output.targets import new_file, refuse_as_removed
from moetool.trace.writing.formats.compact_thrift import (
    Fields,
    Items,
    Kind,
    Value,
    read_struct,
    write_struct,
)
from moetool.trace.writing.parquet_files import open_part, open_writer

_MARK = b"PAR1"
_LENGTH_BYTES = 4
_COPIED_BYTES = 1 << 24
_LARGEST_ORDINAL = (1 << 15) - 1


class _File:
    """Fields of Parquet's `FileMetaData`, see `parquet.thrift`."""

    SCHEMA = 2
    NUM_ROWS = 3
    ROW_GROUPS = 4


class _Group:
    """Fields of `RowGroup`."""

    COLUMNS = 1
    NUM_ROWS = 3
    FILE_OFFSET = 5
    ORDINAL = 7


class _Chunk:
    """Fields of `ColumnChunk`."""

    FILE_PATH = 1
    FILE_OFFSET = 2
    METADATA = 3
    # Places of the pages' index, which itself holds places in the file: it isn't taken over.
    PAGE_INDEX = (4, 5, 6, 7)


class _Column:
    """Fields of `ColumnMetaData`."""

    COMPRESSED_BYTES = 7
    DATA_OFFSET = 9
    DICTIONARY_OFFSET = 11
    # The places of its pages and of its Bloom filter.
    OFFSETS = (DATA_OFFSET, 10, DICTIONARY_OFFSET, 14)


@dataclass(frozen=True)
class _Part:
    """A Parquet file to be joined.

    Attributes:
        metadata: Its footer.
        end: Where the pages end and the footer starts.
    """

    metadata: Fields
    end: int


def join_parquet(
    parts: Sequence[Path],
    target: Path,
    schema: pa.Schema,
    *,
    footer: Mapping[bytes, bytes],
    check: Callable[[pq.FileMetaData], None] | None = None,
) -> None:
    """Write one new Parquet file with the row groups of others, in order, and one footer.

    Args:
        parts: Files that `new_parquet` wrote with the same schema. They stay.
        target: Path of the new file, which is removed if this fails.
        schema: Schema of the parts.
        footer: Metadata of the file, see `new_parquet`.
        check: Is called with the metadata of each part, and raises an error to end this.

    Raises:
        UsageError: A part is missing or damaged, or has another schema.
        OSError: The file can't be written.
    """
    with new_file(target) as file, ParquetJoin(file, schema, check=check) as join:
        for path in parts:
            join.add(path)
        join.finish(footer)


class ParquetJoin:
    """A Parquet file in the making, of the row groups of others.

    Their bytes are copied as they are, in another thread, for which leaving the context waits. Row
    groups without rows are left out.

    Attributes:
        parts: The files added so far.

    Args:
        file: The new file, empty.
        schema: Schema of the parts.
        check: Is called with the metadata of each part, and raises an error to refuse it.
    """

    def __init__(
        self,
        file: BinaryIO,
        schema: pa.Schema,
        *,
        check: Callable[[pq.FileMetaData], None] | None = None,
    ) -> None:
        self.parts: list[Path] = []
        self._file = file
        self._schema = schema
        self._written_schema = _make_footer(schema, {})[_File.SCHEMA]
        self._check = check
        # As bytes, of which Python's search for garbage sees nothing.
        self._groups: list[bytes] = []
        self._num_rows = 0
        self._place = file.write(_MARK)
        self._copying = ThreadPoolExecutor(1)
        self._copies: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._copying.shutdown(cancel_futures=error is not None)

    def add(self, path: Path) -> None:
        """Add the rows of a part.

        Raises:
            UsageError: The part is missing or damaged, or has another schema.
        """
        with open_part(path) as source:
            part = _read_part(path, source, schema=self._written_schema, check=self._check)
        for group in _shift_groups(part, self._place - len(_MARK)):
            _number_group(group, len(self._groups))
            self._num_rows += group[_Group.NUM_ROWS].content
            self._groups.append(write_struct(group))
        self._copies.append(self._copying.submit(_copy_pages, path, part, self._file))
        self._place += part.end - len(_MARK)
        self.parts.append(path)

    def finish(self, footer: Mapping[bytes, bytes]) -> None:
        """Wait for the copies, and write the footer.

        Raises:
            UsageError: A part is gone.
            OSError: The file can't be written.
        """
        for copy in self._copies:
            copy.result()
        joined = _make_footer(self._schema, footer)
        joined[_File.NUM_ROWS] = Value(Kind.I64, self._num_rows)
        joined[_File.ROW_GROUPS] = Value(Kind.LIST, Items(Kind.STRUCT, self._groups))
        written = write_struct(joined)
        self._file.write(written + len(written).to_bytes(_LENGTH_BYTES, "little") + _MARK)


def _make_footer(schema: pa.Schema, footer: Mapping[bytes, bytes]) -> Fields:
    """Return the footer that pyarrow gives a file without rows."""
    written = pa.BufferOutputStream()
    with open_writer(written, schema, footer):
        pass
    content = written.getvalue().to_pybytes()
    length = _read_length(content[-len(_MARK) - _LENGTH_BYTES :])
    return read_struct(content[-len(_MARK) - _LENGTH_BYTES - length :])


def _read_part(
    path: Path,
    source: BinaryIO,
    *,
    schema: Value,
    check: Callable[[pq.FileMetaData], None] | None,
) -> _Part:
    """Return the footer of a part, after checks that pyarrow can read it and that it fits."""
    # pyarrow's reader of footers withstands any damage.
    metadata = pq.read_metadata(source)
    if check is not None:
        check(metadata)
    tail = len(_MARK) + _LENGTH_BYTES
    end = source.seek(-tail, os.SEEK_END)
    length = _read_length(source.read(tail))
    source.seek(end - length)
    part = _Part(read_struct(source.read(length)), end - length)
    if part.metadata[_File.SCHEMA] != schema or not _has_its_pages(part):
        raise refuse_as_removed(path)
    return part


def _has_its_pages(part: _Part) -> bool:
    """Return whether the pages of each column lie in the file itself, before its footer."""
    for group in _list_groups(part):
        for chunk in group[_Group.COLUMNS].content.contents:
            if _Chunk.FILE_PATH in chunk or _Chunk.METADATA not in chunk:
                return False
            column = chunk[_Chunk.METADATA].content
            start = column[_Column.DATA_OFFSET].content
            if _Column.DICTIONARY_OFFSET in column:
                start = min(start, column[_Column.DICTIONARY_OFFSET].content or start)
            if not len(_MARK) <= start <= part.end - column[_Column.COMPRESSED_BYTES].content:
                return False
    return True


def _list_groups(part: _Part) -> list[Fields]:
    """Return the row groups that have rows."""
    groups = part.metadata[_File.ROW_GROUPS].content.contents
    return [group for group in groups if group[_Group.NUM_ROWS].content]


def _read_length(tail: bytes) -> int:
    """Return the length of a footer in bytes, given the end of the file."""
    if tail[_LENGTH_BYTES:] != _MARK:
        raise ValueError("This isn't the end of a Parquet file.")
    return int.from_bytes(tail[:_LENGTH_BYTES], "little")


def _shift_groups(part: _Part, shift: int) -> list[Fields]:
    """Return the row groups of a part, their places moved by a number of bytes."""
    groups = _list_groups(part)
    for group in groups:
        _shift(group, (_Group.FILE_OFFSET,), shift)
        for chunk in group[_Group.COLUMNS].content.contents:
            _shift(chunk, (_Chunk.FILE_OFFSET,), shift)
            _shift(chunk[_Chunk.METADATA].content, _Column.OFFSETS, shift)
            for number in _Chunk.PAGE_INDEX:
                chunk.pop(number, None)
    return groups


def _shift(fields: Fields, numbers: Sequence[int], shift: int) -> None:
    for number in numbers:
        # Writers put 0 for a place that does not exist.
        if number in fields and fields[number].content > 0:
            fields[number].content += shift


def _number_group(group: Fields, ordinal: int) -> None:
    """Give a row group its number in the file, for which the field is too narrow at some time."""
    group.pop(_Group.ORDINAL, None)
    if ordinal <= _LARGEST_ORDINAL:
        group[_Group.ORDINAL] = Value(Kind.I16, ordinal)


def _copy_pages(path: Path, part: _Part, target: BinaryIO) -> None:
    """Write what lies between the mark at the start of a part and its footer."""
    with open_part(path) as source:
        source.seek(len(_MARK))
        num_bytes = part.end - len(_MARK)
        while num_bytes:
            copied = source.read(min(num_bytes, _COPIED_BYTES))
            if not copied:
                raise refuse_as_removed(path)
            target.write(copied)
            num_bytes -= len(copied)
