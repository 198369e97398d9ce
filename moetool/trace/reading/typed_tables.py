"""Tables brought to the types of the schema, whatever types a tool wrote."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.faults.rows import name_row
from moetool.trace.schema import KEY_COLUMNS, TRACE_SCHEMA, field_of

TYPES_HINT = "See docs/traces/trace-format.md for the types that a trace has."


def check_kind(path: Path, name: str, kind: pa.DataType) -> None:
    """Check that a column can be read as numbers or words, whatever its width."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = [pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, _is_string_view]
    if name not in TRACE_SCHEMA.names:
        tests += [pa.types.is_floating, pa.types.is_boolean, pa.types.is_null]
    elif not pa.types.is_dictionary(TRACE_SCHEMA.field(name).type):
        tests += [pa.types.is_floating, pa.types.is_decimal]
    elif name not in KEY_COLUMNS:
        tests.append(pa.types.is_null)
    if not any(test(value) for test in tests):
        words = "holds no value"
        if not pa.types.is_null(value):
            words = f"is of the type {printable(kind, max_length=60)}"
        raise _refuse(path, f"the column {name!r} {words}")


def _is_string_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind))


def type_table(path: Path, table: pa.Table, schema: pa.Schema, *, first_row: int) -> pa.Table:
    """Return a table with the types of a schema, and `(none)` for missing words that group.

    Args:
        path: File that holds it.
        table: With the schema's columns, the words of each dictionary-encoded.
        schema: The types.
        first_row: Number of the table's first row in the file.

    Raises:
        InputError: A value doesn't fit its column, or a counted one is missing.
    """
    try:
        typed = table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        words = describe_misfit(path, table, schema, first_row=first_row)
        raise _refuse(path, words or printable(str(error).strip().partition("\n")[0])) from error
    for name in typed.column_names:
        column = typed.column(name)
        if not column.null_count:
            continue
        if name in KEY_COLUMNS:
            row = first_row + pc.index(column.is_null(), value=True).as_py()
            raise _refuse(path, f"there is no {name!r} in {name_row(path, row)}")
        if name in ("domain", "phase") or name not in TRACE_SCHEMA.names:
            filled = column.cast(pa.string()).fill_null(NO_DOMAIN).dictionary_encode()
            typed = typed.set_column(typed.column_names.index(name), name, filled)
    return typed


def describe_misfit(
    path: Path, table: pa.Table, schema: pa.Schema, *, first_row: int
) -> str | None:
    """Return the first value that doesn't fit its column, in words; None if each of them does.

    Args:
        path: File that holds the table.
        table: With the schema's columns.
        schema: The types.
        first_row: Number of the table's first row in the file.
    """
    for name in table.column_names:
        column, kind = table.column(name), schema.field(name).type
        if _can_cast(column, kind):
            continue
        start, end = 0, len(column)  # The first value that doesn't fit is among these.
        while end - start > 1:
            middle = (start + end) // 2
            if _can_cast(column.slice(start, middle - start), kind):
                start = middle
            else:
                end = middle
        value = printable(repr(column[start].as_py()), max_length=60)
        return f"{name!r} is {value} in {name_row(path, first_row + start)}"
    return None


def _can_cast(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _refuse(path: Path, seen: str) -> InputError:
    return InputError(f"'{printable(path)}' can't be read as a trace: {seen}.", hint=TYPES_HINT)


def encode_columns(table: pa.Table) -> pa.Table:
    """Return the table with the word columns of the schema dictionary-encoded, each word once."""
    for index, name in enumerate(table.column_names):
        column = table.column(index)
        if not pa.types.is_dictionary(field_of(name).type):
            if pa.types.is_dictionary(column.type):
                table = table.set_column(index, name, column.cast(column.type.value_type))
        elif not _has_each_word_once(column):
            words = column.cast(pa.string()).dictionary_encode()
            table = table.set_column(index, name, words)
    return table


def _has_each_word_once(column: pa.ChunkedArray) -> bool:
    """Return whether a column is encoded with a dictionary without repeated words and nulls."""
    return pa.types.is_dictionary(column.type) and all(
        not chunk.dictionary.null_count
        and pc.count_distinct(chunk.dictionary).as_py() == len(chunk.dictionary)
        for chunk in column.chunks
    )
