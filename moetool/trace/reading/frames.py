"""A trace that is a DataFrame: read by pandas, filtered, or made by another tool."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.trace.headers.header import Header, describe_columns, find_empty
from moetool.trace.metadata import ATTRS_KEY, TraceMetadata, parse_metadata
from moetool.trace.reading.merging import Part, describe_parts
from moetool.trace.reading.reader import TraceSource
from moetool.trace.schema import REQUIRED_COLUMNS, TRACE_SCHEMA

if TYPE_CHECKING:
    import pandas as pd

# The name of a frame in messages.
_NAME = Path("frame")
_DOMAIN = "domain"


def open_frame(
    frame: pd.DataFrame, *, by: str = _DOMAIN, extra: Collection[str] = ()
) -> TraceSource:
    """Return the trace that a DataFrame holds.

    Metadata is that in `attrs["moetool"]`, where `read_trace` puts it.

    Args:
        frame: Its rows are those of a trace; the index has no meaning.
        by: The column with the domain of each row.
        extra: Columns to keep under their names, where the frame has them.

    Raises:
        InputError: A required column is missing, or columns or metadata can't be used.
        UsageError: There is no such column to group by.
    """
    names = [str(name) for name in frame.columns]
    missing = [name for name in REQUIRED_COLUMNS if name not in names]
    if missing:
        raise InputError(
            f"The frame is not a trace: it lacks the column {missing[0]!r}.",
            hint=f"A trace has at least the columns {', '.join(REQUIRED_COLUMNS)}.",
            facts=[f"seen: {printable(', '.join(names[:12]))}"],
        )
    if by not in names and by != _DOMAIN:
        raise UsageError(
            f"The frame has no column '{printable(by, max_length=60)}' to group by.",
            hint=f"Its columns are {printable(', '.join(names[:20]))}.",
        )
    kept = [name for name in TRACE_SCHEMA.names if name in names and name != _DOMAIN]
    kept += [name for name in extra if name in names and name not in TRACE_SCHEMA.names]
    wanted = {**{name: name for name in kept}, **({by: _DOMAIN} if by in names else {})}
    repeated = [name for name in wanted if names.count(name) > 1]
    if repeated:
        raise InputError(
            f"The frame has the column {repeated[0]!r} more than once.",
            hint="Name each column once.",
        )
    columns = {column: _take_column(frame, name) for name, column in wanted.items()}
    metadata = _take_metadata(frame.attrs.get(ATTRS_KEY))
    table = pa.table(columns)
    empty = find_empty(table)
    header = Header(_NAME, tuple(name for name in columns if name not in empty), metadata, empty)
    return TraceSource(
        path=_NAME,
        files=(_NAME,),
        columns=header.names,
        metadata=metadata,
        notes=(*describe_parts([Part(_NAME, metadata)]), *describe_columns([header], {})),
        table=table.select(header.names),
        empty=empty,
    )


def open_table(table: pa.Table, *, metadata: TraceMetadata) -> TraceSource:
    """Return the trace that a table with `TRACE_SCHEMA` holds."""
    return TraceSource(
        path=_NAME,
        files=(_NAME,),
        columns=tuple(table.column_names),
        metadata=metadata,
        notes=describe_parts([Part(_NAME, metadata)]),
        table=table,
    )


def _take_column(frame: pd.DataFrame, name: str) -> pa.Array | pa.ChunkedArray:
    try:
        column = pa.array(frame[name], from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"The frame's column {name!r} can't be read as a column of a trace.",
            hint="See docs/traces/trace-format.md for the types that a trace has.",
            facts=[f"seen: {printable(str(error).strip().partition(chr(10))[0])}"],
        ) from error
    # Categories of numbers, which can't become words at once.
    if pa.types.is_dictionary(column.type) and not pa.types.is_string(column.type.value_type):
        column = column.cast(column.type.value_type)
    return column


def _take_metadata(value: object) -> TraceMetadata | None:
    if value is None:
        return None
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The frame's attrs[{ATTRS_KEY!r}] is not the metadata of a trace.",
            hint="Remove it to have the number of experts and top-k inferred.",
            facts=[f"seen: {printable(error)}"],
        ) from error
    return parse_metadata(text, source=f"frame.attrs[{ATTRS_KEY!r}]")
