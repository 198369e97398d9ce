"""Entries of a Parquet file's footer about parts of columns, read so that damage is an error."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def read_column_part(parquet: pq.ParquetFile, place: int, *, group: int) -> pq.ColumnChunkMetaData:
    """Return the footer's entry about a column's values in a row group.

    Args:
        parquet: The open file.
        place: The column's place in the schema.
        group: Number of the row group.

    Raises:
        ArrowException: The file is damaged.
        OSError: It is damaged, or can't be read.
    """
    # pyarrow 26 ends the process where the entry is damaged. Beginning to read the column raises an
    # error instead. No row is asked for, because a page may take more memory than there is.
    next(parquet.reader.iter_batches(0, [group], [place]), None)
    return parquet.metadata.row_group(group).column(place)


def read_statistics(parquet: pq.ParquetFile, name: str, *, group: int) -> pq.Statistics | None:
    """Return the statistics of a column's values in a row group; None if there are none.

    Args:
        parquet: The open file.
        name: Name of a column that is not nested.
        group: Number of the row group.

    Raises:
        ArrowException: The file is damaged.
        OSError: It is damaged, or can't be read.
    """
    schema = parquet.metadata.schema
    place = next(i for i in range(len(schema)) if schema.column(i).path == name)
    part = read_column_part(parquet, place, group=group)
    # pyarrow 26 ends the process where statistics are of another type than the schema's.
    if part.physical_type != schema.column(place).physical_type:
        raise pa.ArrowInvalid(f"the type of '{name}' differs between its parts and the schema")
    return part.statistics
