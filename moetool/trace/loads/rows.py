"""Rows of a load table: read with their types, checked, and summed over steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.companions import sidecar_path
from moetool.trace.faults.csv_text import explain_csv, read_names
from moetool.trace.faults.rows import name_row
from moetool.trace.metadata import FOOTER_KEY
from moetool.trace.metadata_fields import LARGEST_ID, MOST_BYTES
from moetool.trace.reading.files import open_file, read_small_file
from moetool.trace.reading.typed_tables import describe_misfit
from moetool.trace.reading.words import encode_words
from moetool.trace.schema import plain_schema

LOAD_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("stack", pa.dictionary(pa.int32(), pa.string())),
        pa.field("layer", pa.int16()),
        pa.field("expert", pa.int16()),
        pa.field("count", pa.int64()),
    ]
)

# Raised by pyarrow for damaged files and for values that do not fit.
READ_ERRORS = (pa.ArrowException, ValueError, KeyError, OSError)

_VALUES_HINT = "See docs/traces/import.md for the values that a load table has."
_ROWS_PER_TABLE = 1_000_000
# For all layers together, 8 bytes each: a limit on memory.
_MOST_CELLS = 2**26
# Rows in another order than that of step, stack, layer and expert are sorted to find repeated ones.
_MOST_UNORDERED_ROWS = 2**26
_KEY_TYPE = np.dtype([("step", np.int64), ("place", np.int64)])

Place = tuple[str, int]


def read_load_header(path: Path) -> tuple[list[str], bytes | None]:
    """Return the names of a table's columns, and the text of its metadata if it has any.

    Raises:
        InputError: The metadata is too long, or the file is a pointer of Git LFS.
        OSError: The file can't be opened.
        ArrowException: The file is damaged.
    """
    if path.suffix == ".csv":
        open_file(path).close()
        return read_names(path), read_small_file(sidecar_path(path), most_bytes=MOST_BYTES)
    with open_file(path) as file:
        footer = pq.read_metadata(file)
    return footer.schema.to_arrow_schema().names, (footer.metadata or {}).get(FOOTER_KEY)


def iter_load_tables(path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Yield the rows of a load table with the types of `LOAD_SCHEMA`, about a million at a time.

    Raises:
        InputError: A value is missing, below 0 or doesn't fit its column, or the file is damaged.
    """
    schema = pa.schema([LOAD_SCHEMA.field(name) for name in columns])
    num_rows = 0
    try:
        for table in _read_csv(path, schema) if path.suffix == ".csv" else _read(path, schema):
            # Words first become plain ones: a foreign dictionary may hold one twice, or a null.
            table = table.select(columns)
            try:
                typed = table.cast(plain_schema(schema)).cast(schema)
            except READ_ERRORS:
                words = describe_misfit(path, table, plain_schema(schema), first_row=num_rows)
                if words is None:
                    raise
                raise _refuse(path, words) from None
            typed.validate(full=True)
            _check_values(path, typed, first_row=num_rows)
            num_rows += typed.num_rows
            if typed.num_rows:
                yield typed
    except READ_ERRORS as error:
        raise unreadable_loads(path, error, schema=schema, num_rows=num_rows) from error


def sum_loads(path: Path, columns: tuple[str, ...]) -> dict[Place, NDArray[np.int64]]:
    """Return each layer's counts over all steps, up to the largest id that occurs.

    Raises:
        InputError: The rows can't be read, or one occurs twice.
    """
    sums: dict[Place, NDArray[np.int64]] = {}
    codes: dict[str, int] = {}
    last = np.zeros(0, dtype=_KEY_TYPE)
    is_ordered = True
    for table in iter_load_tables(path, columns):
        keys = _make_keys(table, codes)
        is_ordered = is_ordered and _ascends(np.concatenate([last, keys]))
        last = keys[-1:]
        _add(path, table, sums)
    if not is_ordered:
        _refuse_repeated(path, columns)
    return sums


def check_num_cells(path: Path, num_layers: int, num_experts: int) -> None:
    """Check that tables of layers by experts fit into memory.

    Raises:
        InputError: They have too many cells.
    """
    if num_layers * num_experts > _MOST_CELLS:
        raise InputError(
            f"'{printable(path)}' counts {num_experts:,} experts in {num_layers:,} layers, more "
            "than any model has.",
            hint=_VALUES_HINT,
        )


def unreadable_loads(
    path: Path, error: Exception, *, schema: pa.Schema | None = None, num_rows: int = 0
) -> InputError:
    """Return the error for a file that pyarrow can't read as a load table.

    Args:
        path: The file.
        error: What pyarrow raised.
        schema: Columns that were being read; None if only the header was.
        num_rows: Rows that were read before.
    """
    if path.suffix == ".csv":
        types = {field.name: field.type for field in plain_schema(schema or pa.schema([]))}
        fault = explain_csv(path, types, num_rows=num_rows)
        if fault is not None:
            return InputError(
                f"'{printable(path)}' can't be read as a load table: {fault.words}.",
                hint=fault.hint or _VALUES_HINT,
            )
    return InputError(
        f"'{printable(path)}' can't be read as a load table.",
        hint="Import it again: the file is damaged, or a value doesn't fit its column.",
        facts=[f"seen: {printable(str(error).strip().partition(chr(10))[0])}"],
    )


def _read(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    with open_file(path) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_TABLE, columns=schema.names):
            yield pa.Table.from_batches([batch])


def _read_csv(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    types = {field.name: field.type for field in schema}
    if "stack" in types:
        types["stack"] = pa.string()
    options = pa.csv.ConvertOptions(
        column_types=types, include_columns=schema.names, strings_can_be_null=False
    )
    with open_file(path) as file, pa.csv.open_csv(file, convert_options=options) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _check_values(path: Path, table: pa.Table, *, first_row: int) -> None:
    for name in table.column_names:
        column = table.column(name)
        is_wrong = column.is_null()
        if not column.null_count and name != "stack":
            is_wrong = pc.less(column, 0)
        row = pc.index(is_wrong, value=True).as_py()
        if row < 0:
            continue
        value = column[row].as_py()
        words = f"there is no {name!r}" if value is None else f"{name!r} is {value}, below 0,"
        raise _refuse(path, f"{words} in {name_row(path, first_row + row)}")


def _refuse(path: Path, words: str) -> InputError:
    return InputError(
        f"'{printable(path)}' can't be read as a load table: {words}.", hint=_VALUES_HINT
    )


def _make_keys(table: pa.Table, codes: dict[str, int]) -> NDArray[Any]:
    """Return a number pair for each row that tells rows of one step, layer and expert apart.

    Args:
        table: Rows with the types of `LOAD_SCHEMA`.
        codes: The code of each stack so far, to which those of this table are added.
    """
    stacks, stack = encode_words(table, "stack", default="decoder")
    code = np.array([codes.setdefault(name, len(codes)) for name in stacks], dtype=np.int64)
    keys = np.zeros(table.num_rows, dtype=_KEY_TYPE)
    if "step" in table.column_names:
        keys["step"] = table.column("step").to_numpy()
    layer, expert = (table.column(name).to_numpy().astype(np.int64) for name in ("layer", "expert"))
    keys["place"] = ((code[stack] << 15) + layer << 15) + expert
    return keys


def _ascends(keys: NDArray[Any]) -> bool:
    step, place = keys["step"], keys["place"]
    return bool(
        np.all((step[1:] > step[:-1]) | ((step[1:] == step[:-1]) & (place[1:] > place[:-1])))
    )


def _refuse_repeated(path: Path, columns: tuple[str, ...]) -> None:
    codes: dict[str, int] = {}
    kept: list[NDArray[Any]] = []
    for table in iter_load_tables(path, columns):
        kept.append(_make_keys(table, codes))
        if sum(map(len, kept)) > _MOST_UNORDERED_ROWS:
            raise InputError(
                f"The rows of '{printable(path)}' are not in order, and too many to sort.",
                hint="Sort them by step, stack, layer and expert.",
            )
    keys = np.concatenate(kept)
    order = np.lexsort((keys["place"], keys["step"]))
    keys = keys[order]
    (repeated,) = np.nonzero(keys[1:] == keys[:-1])
    if len(repeated):
        step, place = keys[repeated[0]].tolist()
        layer, expert = divmod(place % 2**30, LARGEST_ID + 1)
        where = f" of step {step}" if "step" in columns else ""
        raise InputError(
            f"'{printable(path)}' counts expert {expert} of layer {layer}{where} twice.",
            hint="Add the counts up, or number the rows by step.",
        )


def _add(path: Path, table: pa.Table, sums: dict[Place, NDArray[np.int64]]) -> None:
    stacks, stack = encode_words(table, "stack", default="decoder")
    layer, expert, count = (
        table.column(name).to_numpy().astype(np.int64) for name in ("layer", "expert", "count")
    )
    place = (stack << 15) + layer
    widest = max(map(len, sums.values()), default=0)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        code = int(place[rows[0]])
        name = (stacks[code >> 15], code % 2**15)
        seen = sums.get(name, np.zeros(0, dtype=np.int64))
        total = np.pad(seen, (0, max(0, int(expert[rows].max()) + 1 - len(seen))))
        # As floats first: whole numbers would silently start again from below zero.
        if float(total.sum()) + count[rows].astype(np.float64).sum() >= 2**62:
            raise InputError(
                f"The counts of layer {name[1]} in '{printable(path)}' add up to more than 2^62.",
                hint="Import it again: no engine counts as much.",
            )
        np.add.at(total, expert[rows], count[rows])
        sums[name] = total
        widest = max(widest, len(total))
        check_num_cells(path, len(sums), widest)
