"""Parquet files of a trace, written row by row."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.output.targets import new_file, refuse_as_removed

ROWS_PER_GROUP = 1_000_000

# Large pages take less time and space: each has a header, and starts its column's runs again.
_ROWS_PER_PAGE = 1 << 18
_VALUES_PER_BATCH = 1 << 16
# All words of a row group stay in its dictionary: beyond it, they would be spelled out row by row.
_LARGEST_DICTIONARY_BYTES = 1 << 26
# Its words have no order, and comparing them takes more time than writing the column.
_WITHOUT_STATISTICS = "token"


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
    with new_file(path) as file, open_writer(file, schema, footer) as writer:
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


def _choose_group_size(num_rows: int) -> int:
    num_groups = max(1, round(num_rows / ROWS_PER_GROUP))
    return max(1, -(-num_rows // num_groups))


def open_writer(
    file: BinaryIO | pa.BufferOutputStream, schema: pa.Schema, footer: Mapping[bytes, bytes]
) -> ParquetWriter:
    """Return a writer of an open file, see `new_parquet`."""
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
