"""Writing of load tables: a file that appears complete or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.output.targets import new_file, put_in_place, saying_what_failed
from moetool.trace.companions import find_companions, sidecar_path
from moetool.trace.loads.metadata import LoadMetadata
from moetool.trace.loads.rows import LOAD_SCHEMA
from moetool.trace.metadata import FOOTER_KEY
from moetool.trace.schema import plain_schema
from moetool.trace.writing.targets import check_target


def write_loads(
    tables: Iterable[pa.Table],
    target: Path,
    *,
    describe: Callable[[], LoadMetadata],
    columns: tuple[str, ...],
    replace_existing: bool = False,
) -> int:
    """Write a load table to a .parquet or .csv file, and return its number of rows.

    Args:
        tables: Rows with the columns of `LOAD_SCHEMA` that are named, and its types.
        target: File to write; the metadata of a CSV goes next to it.
        describe: Returns what is stored with the rows, once all of them have been taken.
        columns: Those of `LOAD_SCHEMA` that the tables have, in its order.
        replace_existing: Replace an existing file.

    Raises:
        UsageError: The target can't be written.
    """
    check_target(target, replace_existing=replace_existing)
    schema = pa.schema([LOAD_SCHEMA.field(name) for name in columns])
    unfinished, sidecar = (
        target.with_name(f".moetool-{secrets.token_hex(8)}.unfinished") for _ in range(2)
    )
    try:
        with saying_what_failed(target):
            is_csv = target.suffix == ".csv"
            num_rows, footer = _write(unfinished, tables, schema, describe, is_csv=is_csv)
            if target.suffix == ".csv":
                with new_file(sidecar) as file:
                    file.write(footer[FOOTER_KEY])
            for path in find_companions(target):
                path.unlink()
            put_in_place(unfinished, target, replace_existing=replace_existing)
            if target.suffix == ".csv":
                put_in_place(sidecar, sidecar_path(target), replace_existing=replace_existing)
    finally:
        unfinished.unlink(missing_ok=True)
        sidecar.unlink(missing_ok=True)
    return num_rows


def _write(
    path: Path,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    describe: Callable[[], LoadMetadata],
    *,
    is_csv: bool,
) -> tuple[int, dict[bytes, bytes]]:
    num_rows = 0
    plain = plain_schema(schema)
    with new_file(path) as file:
        writer = (
            pa.csv.CSVWriter(file, plain)
            if is_csv
            else pq.ParquetWriter(file, schema, compression="zstd")
        )
        with writer:
            for table in tables:
                writer.write_table(table.cast(plain if is_csv else schema))
                num_rows += table.num_rows
            footer = describe().to_footer()
            if not is_csv:
                writer.add_key_value_metadata(footer)
    return num_rows, footer
