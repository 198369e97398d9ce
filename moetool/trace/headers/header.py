"""Headers of the files of a trace: their columns, and their metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.companions import sidecar_path
from moetool.trace.faults.csv_text import TEXT_HINT, find_open_quote
from moetool.trace.headers.column_parts import read_statistics
from moetool.trace.loads.metadata import has_load_columns, refuse_loads
from moetool.trace.metadata import FOOTER_KEY, TraceMetadata, parse_metadata
from moetool.trace.metadata_fields import MOST_BYTES
from moetool.trace.reading.files import open_file, read_small_file
from moetool.trace.schema import TRACE_SCHEMA
from moetool.wording import join_words

# Raised by pyarrow for damaged files and for values that do not fit.
READ_ERRORS = (pa.ArrowException, ValueError, KeyError, OSError)
# A token may contain a line break; its field is then quoted.
CSV_PARSING = pa.csv.ParseOptions(newlines_in_values=True)
# Optional columns that need a value in each row, unless they have none at all.
_MAY_BE_EMPTY = ("stack", "rank", "weight")
_COLUMNS_NAMED = 8


@dataclass(frozen=True)
class Header:
    """The columns and metadata of one file.

    Attributes:
        path: The file.
        names: Its columns with values, in order.
        metadata: None if it has none.
        empty: Columns that have rows but no values, and so count as absent.
    """

    path: Path
    names: tuple[str, ...]
    metadata: TraceMetadata | None
    empty: tuple[str, ...] = ()


def read_header(path: Path) -> Header:
    """Return the header of a file.

    Raises:
        InputError: It is a load table, or its metadata can't be read.
        OSError: The file can't be opened.
        ArrowException: The file is damaged.
    """
    is_csv = path.suffix == ".csv"
    names, empty = _read_csv_columns(path) if is_csv else _read_parquet_columns(path)
    if has_load_columns(names):
        refuse_loads(path)
    if is_csv:
        sidecar = sidecar_path(path)
        text = read_small_file(sidecar, most_bytes=MOST_BYTES)
        source = str(sidecar)
    else:
        with open_file(path) as file:
            text = (pq.read_metadata(file).metadata or {}).get(FOOTER_KEY)
        source = str(path)
    return Header(
        path,
        tuple(name for name in names if name not in empty),
        None if text is None else parse_metadata(text, source=source),
        empty,
    )


def join_columns(headers: Sequence[Header]) -> tuple[tuple[str, ...], Mapping[str, Path]]:
    """Return the columns that all files have; and the first file without each of the others.

    Raises:
        InputError: Some of the files lack a column of the format that others have.
    """
    lacking: dict[str, Path] = {}
    for name in dict.fromkeys(name for header in headers for name in header.names):
        without = next((header for header in headers if name not in header.names), None)
        if without is None:
            continue
        lacking[name] = without.path
        if name in TRACE_SCHEMA.names:
            having = next(header for header in headers if name in header.names)
            state = "has no value in its column" if name in without.empty else "has no column"
            raise InputError(
                f"'{printable(without.path)}' {state} {name!r}, unlike "
                f"'{printable(having.path.name)}' next to it.",
                hint="Remove the column from each part, or keep the parts in separate folders.",
            )
    names = headers[0].names
    return tuple(name for name in names if name not in lacking), lacking


def describe_columns(headers: Sequence[Header], lacking: Mapping[str, Path]) -> tuple[str, ...]:
    """Return notes on columns that are left out, as sentences."""
    notes = [
        f"The column {name!r} holds no value, so it counts as absent."
        for name in dict.fromkeys(name for header in headers for name in header.empty)
    ]
    if lacking:
        names = [printable(repr(name), max_length=40) for name in lacking]
        more = len(names) - _COLUMNS_NAMED
        shown = names[:_COLUMNS_NAMED] + ([f"{more} more"] if more > 0 else [])
        file = printable(next(iter(lacking.values())).name, max_length=60)
        columns = "column" if len(names) == 1 else "columns"
        where = file if len(set(lacking.values())) == 1 else f"{file} and other parts"
        verb = "lacks" if len(set(lacking.values())) == 1 else "lack"
        them = "it" if len(names) == 1 else "them"
        notes.append(
            f"The {columns} {join_words(shown, last='and')} can't be used: {where} {verb} {them}."
        )
    return tuple(notes)


def find_empty(table: pa.Table) -> tuple[str, ...]:
    """Return the columns of a table that may be empty and are."""
    return tuple(
        name
        for name in _MAY_BE_EMPTY
        if name in table.column_names and 0 < table.num_rows == table.column(name).null_count
    )


def _read_csv_columns(path: Path) -> tuple[list[str], tuple[str, ...]]:
    quote = find_open_quote(path)
    if quote is not None:
        raise InputError(
            f"'{printable(path)}' can't be read as a trace: a quotation mark in line {quote:,} "
            "isn't closed.",
            hint=TEXT_HINT,
        )
    options = pa.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    with (
        open_file(path) as file,
        pa.csv.open_csv(file, parse_options=CSV_PARSING, convert_options=options) as reader,
    ):
        schema = reader.schema
    # Without a value in the first megabyte: the others are looked at, too.
    empty = tuple(
        name
        for name in _MAY_BE_EMPTY
        if schema.names.count(name) == 1
        and pa.types.is_null(schema.field(name).type)
        and _is_empty_in_csv(path, name)
    )
    return schema.names, empty


def _is_empty_in_csv(path: Path, name: str) -> bool:
    options = pa.csv.ConvertOptions(
        column_types={name: pa.string()},
        include_columns=[name],
        null_values=[""],
        strings_can_be_null=True,
    )
    num_rows = 0
    with (
        open_file(path) as file,
        pa.csv.open_csv(file, parse_options=CSV_PARSING, convert_options=options) as reader,
    ):
        for batch in reader:
            num_rows += batch.num_rows
            if batch.column(0).null_count < batch.num_rows:
                return False
    return num_rows > 0


def _read_parquet_columns(path: Path) -> tuple[list[str], tuple[str, ...]]:
    with open_file(path) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        empty = tuple(
            name
            for name in _MAY_BE_EMPTY
            if names.count(name) == 1 and _is_empty_in_parquet(parquet, name)
        )
    return names, empty


def _is_empty_in_parquet(parquet: pq.ParquetFile, name: str) -> bool:
    footer = parquet.metadata
    if not footer.num_rows:
        return False
    if pa.types.is_null(parquet.schema_arrow.field(name).type):
        return True
    paths = {footer.schema.column(index).path for index in range(footer.num_columns)}
    if name not in paths:  # Of a type that no column of a trace has.
        return False
    for group in range(footer.num_row_groups):
        statistics = read_statistics(parquet, name, group=group)
        if statistics is not None and statistics.has_null_count:
            # Of values that are not null, which is none if all are.
            if statistics.num_values:
                return False
            continue
        for batch in parquet.iter_batches(row_groups=[group], columns=[name]):
            if batch.column(0).null_count < batch.num_rows:
                return False
    return True
