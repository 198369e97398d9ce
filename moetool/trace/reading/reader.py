"""Reading of a trace from disk, whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.choices import take_flag, take_path
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.faults.csv_text import explain_csv
from moetool.trace.faults.headers import find_delimiter, refuse_delimiter, refuse_header
from moetool.trace.faults.parquet import refuse_parquet
from moetool.trace.headers.constant_words import find_constant_words, repeat_word
from moetool.trace.headers.header import (
    CSV_PARSING,
    READ_ERRORS,
    Header,
    describe_columns,
    join_columns,
    read_header,
)
from moetool.trace.metadata import ATTRS_KEY, TraceMetadata
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.files import IMPORT_HINT, find_files, open_file
from moetool.trace.reading.layer_shapes import check_described
from moetool.trace.reading.merging import Part, describe_parts, merge_metadata
from moetool.trace.reading.typed_tables import TYPES_HINT, check_kind, encode_columns, type_table
from moetool.trace.schema import (
    REQUIRED_COLUMNS,
    TRACE_SCHEMA,
    field_of,
    plain_schema,
)

if TYPE_CHECKING:
    import pandas as pd

_ROWS_PER_TABLE = 1_000_000
_COLUMNS_HINT = f"A trace has at least the columns {', '.join(REQUIRED_COLUMNS)}; {IMPORT_HINT}"
# Without those for NaN, which a weight may be.
_NULLS = [word for word in pa.csv.ConvertOptions().null_values if "nan" not in word.lower()]


@dataclass(frozen=True)
class TraceSource:
    """A trace that was found and opened, but not yet read.

    Attributes:
        path: File or folder, as the user named it.
        files: Its Parquet or CSV files, in name order.
        columns: Columns that every file has, without those that hold no value.
        metadata: None if the trace has none.
        notes: Sentences that a reader should know: that the trace is unfinished or inexact, or
            that its parts differ.
        table: The rows of a trace in memory, which has one file that doesn't exist.
        lacking: Columns that only some files have, with the first file that lacks each.
        empty: Columns that hold no value.
    """

    path: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    metadata: TraceMetadata | None
    notes: tuple[str, ...] = ()
    table: pa.Table | None = None
    lacking: Mapping[str, Path] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    def iter_tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the named columns, about a million rows at a time, with the types of the schema.

        Raises:
            InputError: A column is missing, or a value doesn't fit its column.
        """
        for _, table in self.iter_file_tables(columns):
            yield table

    def iter_file_tables(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Yield the same tables, each with the file that holds it.

        Raises:
            InputError: A column is missing, or a value doesn't fit its column.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise InputError(
                f"'{printable(self.path)}' has no column {missing[0]!r}.",
                hint=f"A trace for this has the columns {', '.join(columns)}.",
            )
        schema = pa.schema([field_of(name) for name in columns])
        for path in self.files:
            try:
                num_rows = 0
                for table in self._read(path, columns):
                    typed = type_table(path, table.select(columns), schema, first_row=num_rows)
                    num_rows += table.num_rows
                    # Parquet holds texts as bytes, which have not been checked so far.
                    typed.validate(full=True)
                    yield path, typed
            except READ_ERRORS as error:
                raise _unreadable(path, error, schema=schema, num_rows=num_rows) from error

    def _read(self, path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
        if self.table is not None:
            return _slice_table(path, self.table.select(columns))
        return _iter_csv(path, columns) if path.suffix == ".csv" else _iter_parquet(path, columns)


def open_trace(path: Path) -> TraceSource:
    """Return the trace at a path: a Parquet or CSV file, or a folder of Parquet parts.

    Raises:
        InputError: There is no trace at the path.
    """
    files = find_files(path)
    headers = [_open_header(file) for file in files]
    for header in headers:
        names = header.names
        repeated = [name for name in TRACE_SCHEMA.names if names.count(name) > 1]
        if repeated:
            raise InputError(
                f"'{printable(header.path)}' has the column {repeated[0]!r} more than once.",
                hint="Name each column once.",
            )
        if not all(name in names for name in REQUIRED_COLUMNS):
            raise refuse_header(header.path, names, REQUIRED_COLUMNS, hint=_COLUMNS_HINT)
    columns, lacking = join_columns(headers)
    parts = [Part(header.path, header.metadata) for header in headers]
    return TraceSource(
        path=path,
        files=files,
        columns=columns,
        metadata=merge_metadata(parts),
        notes=(*describe_parts(parts), *describe_columns(headers, lacking)),
        lacking=lacking,
        empty=tuple(dict.fromkeys(name for header in headers for name in header.empty)),
    )


def read_trace(path: str | Path, *, validate: bool = True) -> pd.DataFrame:
    """Return a whole trace as a DataFrame with one row for each assignment.

    The columns are described in docs/traces/trace-format.md. Words (prompt, domain, phase, token, stack)
    are categoricals. For a trace larger than memory, query the Parquet file instead.

    Args:
        path: File, or folder of Parquet parts.
        validate: Refuse rows that no trace has, or that contradict its metadata: rows that occur
            twice, a prompt under two domains, weights below 0, and so on. The page on the format
            lists all checks.

    Returns:
        The frame. Its `attrs["moetool"]` is the metadata as a dict, unless the trace has none, and
        `attrs["notes"]` are sentences that a reader should know: that the trace is unfinished or
        inexact, or that its parts differ.

    Raises:
        InputError: There is no trace at the path, or it fails a check.
    """
    validate = take_flag(validate, name="validate")
    source = open_trace(take_path(path, name="trace"))
    names = [name for name in TRACE_SCHEMA.names if name in source.columns]
    schema = pa.schema([TRACE_SCHEMA.field(name) for name in names])
    if validate:
        scan = DecisionScan(source)
        tables = [schema.empty_table(), *scan.iter_tables(names)]
        check_described(source, scan.layers)
    else:
        tables = [schema.empty_table(), *source.iter_tables(names)]
    return make_trace_frame(tables, metadata=source.metadata, notes=source.notes)


def make_trace_frame(
    tables: Sequence[pa.Table], *, metadata: TraceMetadata | None, notes: Sequence[str] = ()
) -> pd.DataFrame:
    """Return rows of a trace as a DataFrame with its metadata and notes in `attrs`.

    Args:
        tables: At least one; all with the same columns of `TRACE_SCHEMA`.
        metadata: None if the trace has none.
        notes: Sentences that a reader should know.
    """
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    for name in frame.columns:
        # A file may list words, such as phases, that none of its rows has.
        if hasattr(frame[name], "cat"):
            frame[name] = frame[name].cat.remove_unused_categories()
    if metadata is not None:
        frame.attrs[ATTRS_KEY] = metadata.to_dict()
    frame.attrs["notes"] = list(notes)
    return frame


def _open_header(path: Path) -> Header:
    try:
        return read_header(path)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(
    path: Path, error: Exception, *, schema: pa.Schema | None = None, num_rows: int = 0
) -> InputError:
    """Return the error for a file that pyarrow refused after some rows."""
    if path.suffix == ".csv":
        delimiter = find_delimiter(path, REQUIRED_COLUMNS)
        if delimiter is not None:
            return refuse_delimiter(path, delimiter)
        plain = plain_schema(schema) if schema is not None else pa.schema([])
        types = {field.name: field.type for field in plain}
        fault = explain_csv(path, types, num_rows=num_rows)
        if fault is not None:
            return InputError(
                f"'{printable(path)}' can't be read as a trace: {fault.words}.",
                hint=fault.hint or TYPES_HINT,
            )
    if path.suffix == ".parquet":
        return refuse_parquet(path, error)
    return InputError(
        f"'{printable(path)}' can't be read as a trace.",
        hint=TYPES_HINT,
        facts=[f"seen: {printable(str(error).strip().partition(chr(10))[0])}"],
    )


def _iter_csv(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = plain_schema(pa.schema([field_of(name) for name in columns]))
    options = pa.csv.ConvertOptions(
        column_types={name: schema.field(name).type for name in columns},
        include_columns=list(columns),
        strings_can_be_null=False,
        null_values=_NULLS,
    )
    with (
        open_file(path) as file,
        pa.csv.open_csv(file, parse_options=CSV_PARSING, convert_options=options) as reader,
    ):
        for batch in reader:
            yield encode_columns(pa.Table.from_batches([batch]))


def _iter_parquet(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    # Buffers that are read ahead stay in memory until the end of the file.
    with open_file(path) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
        for name in columns:
            check_kind(path, name, parquet.schema_arrow.field(name).type)
        words = find_constant_words(parquet, columns)
        read = [name for name in columns if name not in words]
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_TABLE, columns=read):
            table = encode_columns(pa.Table.from_batches([batch]))
            for name, word in words.items():
                table = table.append_column(name, repeat_word(word, table.num_rows))
            yield table


def _slice_table(path: Path, table: pa.Table) -> Iterator[pa.Table]:
    for name, kind in zip(table.schema.names, table.schema.types, strict=True):
        check_kind(path, name, kind)
    for start in range(0, table.num_rows, _ROWS_PER_TABLE):
        yield encode_columns(table.slice(start, _ROWS_PER_TABLE))
