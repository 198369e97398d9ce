"""From a stream of tables to closed, readable Parquet parts, and from parts to one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.trace.metadata import FOOTER_KEY
from moetool.trace.schema import plain_schema

ROWS_PER_PART = 1_000_000
SECONDS_PER_PART = 30.0


class PartWriter:
    """Collects rows and closes them as one more Parquet part whenever there are enough.

    A part appears under its own name only when it is whole, so a killed run leaves nothing
    broken behind: it loses what was collected since the last part.

    Args:
        folder: Where the parts go; created with the first part.
        schema: Of every table appended.
        footer: Returns the metadata to put into the next part's footer, as JSON.
    """

    def __init__(self, folder: Path, *, schema: pa.Schema, footer: Callable[[], str]) -> None:
        self.folder = folder
        self.schema = schema
        self.num_rows = 0
        self._footer = footer
        self._collected: list[pa.Table] = []
        self._num_collected = 0
        self._num_parts = 0
        self._last_part_s = time.monotonic()

    def append(self, table: pa.Table) -> None:
        """Collect a table's rows."""
        self._collected.append(table)
        self._num_collected += table.num_rows
        waited_s = time.monotonic() - self._last_part_s
        if self._num_collected >= ROWS_PER_PART or waited_s >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Close what was collected as a part."""
        if self._num_collected:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"part-{self._num_parts:05d}.parquet"
            unfinished = part.with_suffix(".unfinished")
            with _open_parquet(unfinished, self.schema) as writer:
                writer.write_table(_join(self._collected))
                writer.add_key_value_metadata({FOOTER_KEY: self._footer().encode()})
            unfinished.replace(part)
            self.num_rows += self._num_collected
            self._num_parts += 1
        self._collected, self._num_collected = [], 0
        self._last_part_s = time.monotonic()

    def merge_into_parquet(self, path: Path, *, footer: str) -> None:
        """Write the rows of all parts into one Parquet file with the given metadata."""
        with _open_parquet(path, self.schema) as writer:
            for table in self._read_groups():
                writer.write_table(table)
            writer.add_key_value_metadata({FOOTER_KEY: footer.encode()})

    def merge_into_csv(self, path: Path) -> None:
        """Write the rows of all parts into one CSV file."""
        schema = plain_schema(self.schema)
        with pa.csv.CSVWriter(path, schema) as writer:
            for table in self._read_groups():
                writer.write_table(table.cast(schema))

    def _read_groups(self) -> Iterator[pa.Table]:
        """Yield the rows of all parts in order, about `ROWS_PER_PART` at a time."""
        self.flush()
        group: list[pa.Table] = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            group.append(pq.read_table(path, schema=self.schema))
            if sum(table.num_rows for table in group) >= ROWS_PER_PART:
                yield _join(group)
                group = []
        if group:
            yield _join(group)


def _open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Routing weights hardly repeat: split into byte planes they compress better than by dictionary.
    floats = [field.name for field in schema if pa.types.is_float32(field.type)]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=[name for name in schema.names if name not in floats],
        use_byte_stream_split=floats,
    )


def _join(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()
