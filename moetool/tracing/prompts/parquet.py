"""Rows of a Parquet file of prompts, in which a few bytes may stand for many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from moetool.printable import printable
from moetool.tracing.prompts.files import (
    FORMAT_HINT,
    MOST_BYTES,
    SMALLER_HINT,
    BadLine,
    PromptFields,
    RawPrompt,
    column_twice,
    make_row,
    missing_text,
    shown_name,
)
from moetool.tracing.prompts.messages import MESSAGES

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Few enough that a batch of the longest texts that a page can hold fits into memory.
_BATCH_ROWS = 1_000
# Of the indices into a dictionary.
_INDEX_BYTES = 4


def read_parquet(
    file: BinaryIO, *, name: str, fields: PromptFields
) -> Iterator[RawPrompt | BadLine]:
    """Yield a Parquet file's rows; the line is the row's number, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        schema = pq.read_schema(file)
        if fields.text not in schema.names and MESSAGES in schema.names:
            fields = replace(fields, text=MESSAGES)
        bad = _check_columns(schema, name=name, fields=fields)
        if bad is not None:
            yield bad
            return
        wanted = [
            column
            for column in dict.fromkeys((fields.prompt_id, fields.text, fields.domain))
            if column in schema.names
        ]
        paths = _list_paths(pq.read_metadata(file).schema, wanted)
        # As a dictionary, a repeated text is held in memory only once.
        parquet = pq.ParquetFile(file, read_dictionary=list(paths.values()))
        left = MOST_BYTES
        if _count_stored_bytes(parquet, paths, wanted) > left:
            yield _too_large(name)
            return
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            left -= sum(_count_bytes(column) for column in batch.columns)
            if left < 0:
                yield _too_large(name)
                return
            for row in batch.to_pylist():
                number += 1
                yield make_row(row, name=name, line=number, fields=fields)
    # pyarrow raises various errors for values that differ from their declared type.
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
    ) as error:
        # Those of the system's errors that have no number are pyarrow's, for bytes without sense.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        seen = str(error).strip().splitlines() or [type(error).__name__]
        yield BadLine(
            file=name,
            line=number + 1,
            complaint=f"not a Parquet file: {printable(seen[0]).rstrip('.')}",
            hint="Write the file again.",
        )


def _check_columns(schema: pa.Schema, *, name: str, fields: PromptFields) -> BadLine | None:
    """Return a complaint about the columns, before any value is read."""
    if fields.text not in schema.names:
        return missing_text(schema.names, name=name, line=1, fields=fields)
    for column, word in (
        (fields.text, "string"),
        (fields.prompt_id, "string or number"),
        (fields.domain, "string or number"),
    ):
        found = schema.get_all_field_indices(column)
        kinds = [
            None
            if column == fields.text and _holds_messages(schema.field(index).type)
            else _find_wrong_kind(schema.field(index).type, word)
            for index in found
        ]
        wrong = next((kind for kind in kinds if kind), None)
        if wrong is not None:
            complaint = f"'{shown_name(column)}' is not a {word} but {wrong}"
            return BadLine(file=name, line=1, complaint=complaint, hint=FORMAT_HINT)
        if len(found) > 1:
            return column_twice(column, name=name)
    return None


def _holds_messages(kind: pa.DataType) -> bool:
    """Return whether a type is that of lists of objects, which conversations are."""
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_struct(kind.value_type))


def _find_wrong_kind(kind: pa.DataType, word: str) -> str | None:
    """Return the name of a type whose values are neither `word` nor null."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return None
    if word != "string" and (types.is_integer(kind) or types.is_floating(kind)):
        return None
    names = (
        (types.is_binary, "bytes"),
        (types.is_large_binary, "bytes"),
        (types.is_boolean, "bool"),
        (types.is_integer, "int"),
        (types.is_floating, "float"),
        (types.is_list, "list"),
        (types.is_large_list, "list"),
        (types.is_struct, "dict"),
    )
    return next((called for is_kind, called in names if is_kind(kind)), printable(kind))


def _list_paths(schema: pq.ParquetSchema, wanted: list[str]) -> dict[int, str]:
    """Return the paths of the wanted columns' values by their places in the schema.

    That of a list's is, for example, `messages.list.element.role`.
    """
    paths = {place: schema.column(place).path for place in range(len(schema))}
    return {
        place: path
        for place, path in paths.items()
        if path in wanted or path.partition(".")[0] in wanted
    }


def _count_stored_bytes(parquet: pq.ParquetFile, paths: dict[int, str], wanted: list[str]) -> int:
    """Return the size of the wanted columns before compression, as the file states it.

    Each value in a list also takes an index, even if it is null.
    """
    from moetool.trace.headers.column_parts import read_column_part

    total = 0
    for place, path in paths.items():
        for group in range(parquet.num_row_groups):
            part = read_column_part(parquet, place, group=group)
            total += max(0, part.total_uncompressed_size)
            if path not in wanted:
                total += max(0, part.num_values) * _INDEX_BYTES
    return total


def _count_bytes(column: pa.Array) -> int:
    """Return the size of a column's values once each has its own copy."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _holds_messages(column.type):
        return _count_bytes(column.flatten())
    if pa.types.is_struct(column.type):
        return sum(map(_count_bytes, column.flatten()))
    if not pa.types.is_dictionary(column.type) or not len(column.dictionary):
        return int(column.nbytes)
    if pa.types.is_string(column.dictionary.type) or pa.types.is_large_string(
        column.dictionary.type
    ):
        lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
        return (pc.sum(lengths).as_py() or 0) + int(column.indices.nbytes)
    return int(column.indices.nbytes)


def _too_large(name: str) -> BadLine:
    complaint = f"more than {MOST_BYTES // 1_000_000:,} MB in all"
    return BadLine(file=name, line=1, complaint=complaint, hint=SMALLER_HINT)
