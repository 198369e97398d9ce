"""Parquet files of a trace: written row by row, or joined from others without decoding a row."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

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

ROWS_PER_GROUP = 1_000_000

# Large pages take less time and space: each has a header, and starts its column's runs again.
_ROWS_PER_PAGE = 1 << 18
_VALUES_PER_BATCH = 1 << 16
# All words of a row group stay in its dictionary: beyond it, they would be spelled out row by row.
_LARGEST_DICTIONARY_BYTES = 1 << 26
# Its words have no order, and comparing them takes more time than writing the column.
_WITHOUT_STATISTICS = "token"

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


class ParquetWriter(pq.ParquetWriter):  # type: ignore[misc]
    """A writer that divides a table into as few even row groups as need be."""

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write a table in row groups of a given size, or of about `ROWS_PER_GROUP` rows."""
        super().write_table(table, row_group_size or _choose_group_size(table.num_rows))


@contextmanager
def new_parquet(
    path: Path, schema: pa.Schema, *, footer: Mapping[bytes, bytes]
) -> Iterator[ParquetWriter]:
    """Yield a writer of a new file, which is removed if the block fails.

    Args:
        path: Path of the file.
        schema: Schema of each table that will be written.
        footer: Metadata of the file. It is also that of the schema, where pyarrow and pandas look.
    """
    with new_file(path) as file, _open_writer(file, schema, footer) as writer:
        yield writer


@contextmanager
def open_part(path: Path) -> Iterator[BinaryIO]:
    """Open a Parquet file that a run wrote, and read it within the block.

    Raises:
        UsageError: It is missing or damaged.
    """
    try:
        # pyarrow itself only opens names in UTF-8.
        with path.open("rb") as source:
            yield source
    except (FileNotFoundError, pa.ArrowException, ValueError) as error:
        raise refuse_as_removed(path) from error
    except OSError as error:
        if error.errno is None:  # From pyarrow, which could not make sense of the bytes.
            raise refuse_as_removed(path) from error
        raise


def join_parquet(
    parts: Sequence[Path],
    target: Path,
    schema: pa.Schema,
    *,
    footer: Mapping[bytes, bytes],
    check: Callable[[pq.FileMetaData], None] | None = None,
) -> None:
    """Write one new Parquet file with the row groups of others, in order, and one footer.

    Their bytes are copied as they are, in another thread; no row is decoded. Row groups without rows
    are left out.

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
    joined = _make_footer(schema, footer)
    # As bytes, of which Python's search for garbage sees nothing.
    groups: list[bytes] = []
    num_rows = 0
    with new_file(target) as file, ThreadPoolExecutor(1) as copying:
        file.write(_MARK)
        place = len(_MARK)
        copies = []
        for path in parts:
            with open_part(path) as source:
                part = _read_part(path, source, schema=joined[_File.SCHEMA], check=check)
            for group in _shift_groups(part, place - len(_MARK)):
                _number_group(group, len(groups))
                num_rows += group[_Group.NUM_ROWS].content
                groups.append(write_struct(group))
            copies.append(copying.submit(_copy_pages, path, part, file))
            place += part.end - len(_MARK)
        for copy in copies:
            copy.result()
        joined[_File.NUM_ROWS] = Value(Kind.I64, num_rows)
        joined[_File.ROW_GROUPS] = Value(Kind.LIST, Items(Kind.STRUCT, groups))
        written = write_struct(joined)
        file.write(written + len(written).to_bytes(_LENGTH_BYTES, "little") + _MARK)


def _choose_group_size(num_rows: int) -> int:
    num_groups = max(1, round(num_rows / ROWS_PER_GROUP))
    return max(1, -(-num_rows // num_groups))


def _open_writer(
    file: BinaryIO | pa.BufferOutputStream, schema: pa.Schema, footer: Mapping[bytes, bytes]
) -> ParquetWriter:
    columns = [field.name for field in schema if not pa.types.is_list(field.type)]
    # Routing weights rarely repeat: split into byte planes, they compress better than by dictionary.
    encodings = {
        field.name: "BYTE_STREAM_SPLIT" for field in schema if pa.types.is_float32(field.type)
    }
    if "position" in columns:
        encodings["position"] = "DELTA_BINARY_PACKED"  # Mostly, the next is the same or one more.
    return ParquetWriter(
        file,
        schema.with_metadata(footer),
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in columns if name not in encodings],
        column_encoding=encodings,
        write_statistics=[name for name in columns if name != _WITHOUT_STATISTICS],
        dictionary_pagesize_limit=_LARGEST_DICTIONARY_BYTES,
        write_batch_size=_VALUES_PER_BATCH,
        **_page_options(),
    )


@cache
def _page_options() -> dict[str, Any]:
    """Return the option for large pages, which older versions of pyarrow write anyway."""
    known = inspect.signature(pq.ParquetWriter).parameters
    return {"max_rows_per_page": _ROWS_PER_PAGE} if "max_rows_per_page" in known else {}


def _make_footer(schema: pa.Schema, footer: Mapping[bytes, bytes]) -> Fields:
    """Return the footer that pyarrow gives a file without rows."""
    written = pa.BufferOutputStream()
    with _open_writer(written, schema, footer):
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
