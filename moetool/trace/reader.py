"""From a trace on disk, whoever made it, back to tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.errors import InputError
from moetool.trace.companions import PROBABILITIES_SUFFIX, sidecar_path
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.metadata import FOOTER_KEY, TraceMetadata, parse_metadata
from moetool.trace.schema import REQUIRED_COLUMNS, TRACE_SCHEMA, plain_schema

if TYPE_CHECKING:
    import pandas as pd

_ROWS_PER_TABLE = 1_000_000
_TYPES_HINT = "See the column table in the README for the types a trace has."
_DAMAGED_HINT = "Trace again: the file is damaged or not Parquet or CSV."


@dataclass(frozen=True)
class TraceSource:
    """A trace that was found and looked at, not yet read.

    Attributes:
        path: The file or folder as named.
        files: Its Parquet or CSV files, in name order.
        columns: The columns every file has.
        metadata: What the trace says about itself; None if it says nothing.
    """

    path: Path
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    metadata: TraceMetadata | None

    def iter_tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the named columns, some million rows at a time, with the types of the schema.

        Raises:
            InputError: A column is missing, or a value doesn't fit its column.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise InputError(
                f"'{self.path}' has no column {missing[0]!r}.",
                hint=f"A trace for this has the columns {', '.join(columns)}.",
            )
        schema = pa.schema([TRACE_SCHEMA.field(name) for name in columns])
        for path in self.files:
            read = _iter_csv if path.suffix == ".csv" else _iter_parquet
            try:
                for table in read(path, columns):
                    yield _fill(path, table.select(columns).cast(schema))
            except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                raise InputError(
                    f"'{path}' can't be read as a trace.",
                    hint=_DAMAGED_HINT if isinstance(error, OSError) else _TYPES_HINT,
                    facts=[f"seen: {str(error).splitlines()[0]}"],
                ) from error


def open_trace(path: Path) -> TraceSource:
    """Return what a path holds: a Parquet or CSV file, or a folder of Parquet parts.

    Raises:
        InputError: There is no trace at the path.
    """
    # os.path answers no where pathlib raises: a long text is no path.
    if os.path.isdir(path):
        files = tuple(
            file
            for file in sorted(path.glob("*.parquet"))
            if not file.name.endswith(PROBABILITIES_SUFFIX)
        )
        if not files:
            raise InputError(
                f"'{path}' holds no Parquet files.", hint="Name a trace, or a folder of its parts."
            )
    elif os.path.isfile(path):
        if path.suffix not in (".parquet", ".csv"):
            raise InputError(
                f"'{path}' is neither .parquet nor .csv.", hint="Name a trace file or a folder."
            )
        files = (path,)
    else:
        raise InputError(
            f"No trace at '{path}': no such file or folder.",
            hint="Make one with: moetool route-trace demo --prompts sample_prompts -o trace.parquet",
        )
    try:
        headers = [_read_header(file) for file in files]
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"'{path}' can't be read as a trace.",
            hint=_DAMAGED_HINT,
            facts=[f"seen: {str(error).splitlines()[0]}"],
        ) from error
    columns = [name for name in headers[0][0] if all(name in names for names, _ in headers)]
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"'{path}' is no trace: it has no column {missing[0]!r}.",
            hint=f"A trace has at least the columns {', '.join(REQUIRED_COLUMNS)}.",
            facts=[f"seen: {', '.join(columns[:12])}"],
        )
    return TraceSource(
        path=path,
        files=files,
        columns=tuple(columns),
        metadata=_merge([meta for _, meta in headers]),
    )


def read_trace(path: str | Path) -> pd.DataFrame:
    """Return a whole trace as a DataFrame: one row an assignment, columns as in the README.

    Words (prompt, domain, phase, token, stack) are categoricals. For a trace larger than memory,
    query the Parquet file instead.

    Raises:
        InputError: There is no trace at the path.
    """
    source = open_trace(Path(path))
    names = [name for name in TRACE_SCHEMA.names if name in source.columns]
    schema = pa.schema([TRACE_SCHEMA.field(name) for name in names])
    tables = [schema.empty_table(), *source.iter_tables(names)]
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    return frame


def _read_header(path: Path) -> tuple[list[str], TraceMetadata | None]:
    if path.suffix == ".csv":
        with pa.csv.open_csv(path, parse_options=_CSV_PARSING) as reader:
            names = reader.schema.names
        sidecar = sidecar_path(path)
        text = sidecar.read_bytes() if sidecar.is_file() else None
    else:
        footer = pq.read_metadata(path)
        names = footer.schema.to_arrow_schema().names
        text = (footer.metadata or {}).get(FOOTER_KEY)
    return names, parse_metadata(text, source=str(path)) if text else None


def _merge(parts: Sequence[TraceMetadata | None]) -> TraceMetadata | None:
    """Return one part's metadata for all; parts of one run differ in their counts only."""
    if None in parts:
        return None
    known = [part for part in parts if part is not None]
    return replace(known[-1], complete=all(part.complete for part in known))


# A token may hold a line break, in which case its field is quoted.
_CSV_PARSING = pa.csv.ParseOptions(newlines_in_values=True)


def _iter_csv(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = plain_schema(TRACE_SCHEMA)
    options = pa.csv.ConvertOptions(
        column_types={name: schema.field(name).type for name in columns},
        include_columns=list(columns),
        strings_can_be_null=False,
    )
    with pa.csv.open_csv(path, parse_options=_CSV_PARSING, convert_options=options) as reader:
        for batch in reader:
            table = pa.Table.from_batches([batch])
            yield _encode_words(table)


def _iter_parquet(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_PER_TABLE, columns=list(columns)):
            yield _encode_words(pa.Table.from_batches([batch]))


def _fill(path: Path, table: pa.Table) -> pa.Table:
    """Return the table with `(none)` where it has no domain; no other key may be missing."""
    for name in table.column_names:
        column = table.column(name)
        if not column.null_count:
            continue
        if name in REQUIRED_COLUMNS:
            raise InputError(
                f"'{path}' can't be read as a trace.",
                hint=_TYPES_HINT,
                facts=[f"seen: a row without {name!r}"],
            )
        if name == "domain":
            filled = column.cast(pa.string()).fill_null(NO_DOMAIN).dictionary_encode()
            table = table.set_column(table.column_names.index(name), name, filled)
    return table


def _encode_words(table: pa.Table) -> pa.Table:
    """Return the table with the schema's word columns dictionary-encoded."""
    for index, name in enumerate(table.column_names):
        kind = TRACE_SCHEMA.field(name).type
        column = table.column(index)
        if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
            encoded = column.cast(pa.string()).dictionary_encode()
            table = table.set_column(index, name, encoded)
    return table
