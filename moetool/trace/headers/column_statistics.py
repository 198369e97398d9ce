"""Statistics in the footer of a Parquet file, read so that damage is an error."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def read_statistics(parquet: pq.ParquetFile, name: str, *, group: int) -> pq.Statistics | None:
    """Return the statistics of a column's part; None if there are none.

    Args:
        parquet: The open file.
        name: Name of a column that is not nested.
        group: Number of the row group.

    Raises:
        ArrowException: The file is damaged.
        OSError: It is damaged, or can't be read.
    """
    metadata = parquet.metadata
    schema = metadata.schema
    place = next(i for i in range(metadata.num_columns) if schema.column(i).path == name)
    # pyarrow 26 ends the process where a damaged footer is asked for a column, or a column of
    # another type than the schema's for its statistics. Reading a row raises an error instead.
    next(parquet.iter_batches(batch_size=1, row_groups=[group], columns=[name]), None)
    column = metadata.row_group(group).column(place)
    if column.physical_type != schema.column(place).physical_type:
        raise pa.ArrowInvalid(f"the type of '{name}' differs between its parts and the schema")
    return column.statistics
