"""Rows of a trace as CSV, made by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.output.targets import new_file
from moetool.process.cores import count_cores
from moetool.trace.schema import plain_schema
from moetool.trace.writing.parquet_files import open_part

# Larger ones are hardly faster, and take more memory.
_ROWS_PER_BATCH = 1 << 16
# Each holds the text of a row group: 75 MB for a million rows. More threads outrun a disk.
_MOST_THREADS = 4


def csv_header(schema: pa.Schema) -> bytes:
    """Return the first line of a trace with a schema."""
    header = pa.BufferOutputStream()
    pa.csv.write_csv(plain_schema(schema).empty_table(), header)
    content: bytes = header.getvalue().to_pybytes()
    return content


def csv_bytes(table: pa.Table) -> pa.Buffer:
    """Return the lines of a table with words dictionary-encoded, without the header.

    pyarrow makes them without holding the GIL.
    """
    lines = pa.BufferOutputStream()
    options = pa.csv.WriteOptions(include_header=False, batch_size=_ROWS_PER_BATCH)
    pa.csv.write_csv(table.cast(plain_schema(table.schema)), lines, options)
    return lines.getvalue()


def join_csv(parts: Sequence[Path], target: Path, schema: pa.Schema) -> None:
    """Write one new CSV file with the rows of Parquet files, in order.

    Memory holds the text of a few row groups.

    Args:
        parts: Parquet files. They stay.
        target: Path of the new file, which is removed if this fails.
        schema: Schema of the parts.

    Raises:
        UsageError: A part is missing or damaged, or has another schema.
        OSError: The file can't be written.
    """
    groups = _list_groups(parts)
    with new_file(target) as file, closing(_make_in_order(groups, schema)) as made:
        file.write(csv_header(schema))
        for lines in made:
            file.writelines(lines)


def _list_groups(parts: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Yield path and number of every row group."""
    for path in parts:
        with open_part(path) as source:
            num_groups = pq.read_metadata(source).num_row_groups
        for number in range(num_groups):
            yield path, number


def _make_in_order(
    groups: Iterator[tuple[Path, int]], schema: pa.Schema
) -> Generator[list[pa.Buffer], None, None]:
    """Yield the lines of row groups in order, a few of which are in work at the same time."""
    num_threads = min(_MOST_THREADS, count_cores())
    with ThreadPoolExecutor(num_threads, thread_name_prefix="moetool-csv") as pool:
        made: deque[Future[list[pa.Buffer]]] = deque()
        try:
            for path, number in groups:
                made.append(pool.submit(_make_lines, path, number, schema))
                if len(made) > num_threads:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make_lines(path: Path, number: int, schema: pa.Schema) -> list[pa.Buffer]:
    """Return the lines of a row group, decoding a batch of rows at a time."""
    with open_part(path) as source, pq.ParquetFile(source) as file:
        batches = file.iter_batches(_ROWS_PER_BATCH, row_groups=[number], use_threads=False)
        return [csv_bytes(pa.Table.from_batches([batch]).cast(schema)) for batch in batches]
