"""Reading of a trace from disk, whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.choices import take_flag, take_path
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.companions import sidecar_path
from moetool.trace.loads.metadata import has_load_columns, refuse_loads
from moetool.trace.metadata import ATTRS_KEY, FOOTER_KEY, TraceMetadata, parse_metadata
from moetool.trace.metadata_fields import MOST_BYTES
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.files import IMPORT_HINT, find_files, open_file, read_small_file
from moetool.trace.reading.layer_shapes import check_described
from moetool.trace.reading.merging import Part, describe_parts, merge_metadata
from moetool.trace.reading.typed_tables import TYPES_HINT, check_kind, encode_columns, type_table
from moetool.trace.scanning.constant_words import find_constant_words, repeat_word
from moetool.trace.schema import (
    REQUIRED_COLUMNS,
    TRACE_SCHEMA,
    field_of,
    plain_schema,
)

if TYPE_CHECKING:
    import pandas as pd

_ROWS_PER_TABLE = 1_000_000
_DAMAGED_HINT = "Trace again: the file is damaged or not Parquet or CSV."
# Raised by pyarrow for damaged files and for values that do not fit.
_READ_ERRORS = (pa.ArrowException, ValueError, KeyError, OSError)


@dataclass(frozen=True)
class TraceSource:
    """A trace that was found and opened, but not yet read.

    Attributes:
        path: File or folder, as the user named it.
        files: Its Parquet or CSV files, in name order.
        columns: Columns that every file has.
        metadata: None if the trace has none.
        notes: Sentences that a reader should know: that the trace is unfinished or inexact, or
            that its parts differ.
        table: The rows of a trace in memory, which has one file that doesn't exist.
    """

    path: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    metadata: TraceMetadata | None
    notes: tuple[str, ...] = ()
    table: pa.Table | None = None

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
            except _READ_ERRORS as error:
                raise _unreadable(path, error) from error

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
    headers = []
    for file in files:
        try:
            headers.append(_read_header(file))
        except _READ_ERRORS as error:
            raise _unreadable(file, error) from error
    for file, (names, _) in zip(files, headers, strict=True):
        repeated = [name for name in TRACE_SCHEMA.names if names.count(name) > 1]
        if repeated:
            raise InputError(
                f"'{printable(file)}' has the column {repeated[0]!r} more than once.",
                hint="Name each column once.",
            )
    columns = [name for name in headers[0][0] if all(name in names for names, _ in headers)]
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        lacking, seen = next(
            (file, names)
            for file, (names, _) in zip(files, headers, strict=True)
            if missing[0] not in names
        )
        raise InputError(
            f"'{printable(lacking)}' is not a trace: it lacks the column {missing[0]!r}.",
            hint=f"A trace has at least the columns {', '.join(REQUIRED_COLUMNS)}; {IMPORT_HINT}",
            facts=[f"seen: {printable(', '.join(seen[:12]))}"],
        )
    parts = [Part(file, meta) for file, (_, meta) in zip(files, headers, strict=True)]
    return TraceSource(
        path=path,
        files=files,
        columns=tuple(columns),
        metadata=merge_metadata(parts),
        notes=describe_parts(parts),
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


def _read_header(path: Path) -> tuple[list[str], TraceMetadata | None]:
    if path.suffix == ".csv":
        with (
            open_file(path) as file,
            pa.csv.open_csv(file, parse_options=_CSV_PARSING) as reader,
        ):
            names = reader.schema.names
        if has_load_columns(names):
            refuse_loads(path)
        sidecar = sidecar_path(path)
        text = read_small_file(sidecar, most_bytes=MOST_BYTES)
        return names, None if text is None else parse_metadata(text, source=str(sidecar))
    with open_file(path) as file:
        footer = pq.read_metadata(file)
    names = footer.schema.to_arrow_schema().names
    if has_load_columns(names):
        refuse_loads(path)
    text = (footer.metadata or {}).get(FOOTER_KEY)
    return names, None if text is None else parse_metadata(text, source=str(path))


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"'{printable(path)}' can't be read as a trace.",
        hint=_DAMAGED_HINT if _is_damage(error) else TYPES_HINT,
        facts=[f"seen: {printable(str(error).strip().partition(chr(10))[0])}"],
    )


def _is_damage(error: Exception) -> bool:
    return isinstance(error, OSError) or "Parquet" in str(error)


# A token may contain a line break; its field is then quoted.
_CSV_PARSING = pa.csv.ParseOptions(newlines_in_values=True)


def _iter_csv(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = plain_schema(pa.schema([field_of(name) for name in columns]))
    options = pa.csv.ConvertOptions(
        column_types={name: schema.field(name).type for name in columns},
        include_columns=list(columns),
        strings_can_be_null=False,
    )
    with (
        open_file(path) as file,
        pa.csv.open_csv(file, parse_options=_CSV_PARSING, convert_options=options) as reader,
    ):
        for batch in reader:
            yield encode_columns(pa.Table.from_batches([batch]))


def _iter_parquet(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    # Buffers that are read ahead stay in memory until the end of the file.
    with open_file(path) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
        for name in columns:
            check_kind(path, name, parquet.schema_arrow.field(name).type)
        words = find_constant_words(parquet.metadata, columns)
        read = [name for name in columns if name not in words]
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_TABLE, columns=read):
            table = encode_columns(pa.Table.from_batches([batch]))
            for name, word in words.items():
                table = table.append_column(name, repeat_word(word, table.num_rows))
            yield table


def _slice_table(path: Path, table: pa.Table) -> Iterator[pa.Table]:
    for field in table.schema:
        check_kind(path, field.name, field.type)
    for start in range(0, table.num_rows, _ROWS_PER_TABLE):
        yield encode_columns(table.slice(start, _ROWS_PER_TABLE))
