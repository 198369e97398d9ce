"""The place of a row in words: its line in a CSV file, its number elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.faults.csv_text import find_line
from moetool.trace.scanning.columns import take_words
from moetool.trace.scanning.places import describe_row

if TYPE_CHECKING:
    from moetool.trace.reading.reader import TraceSource

_KEY = ("prompt_id", "position", "layer", "expert")


def name_row(path: Path, row: int) -> str:
    """Return a row in words.

    Args:
        path: The file that holds it; a frame has none.
        row: Its number in the file, counted from 0.
    """
    if path.suffix == ".csv" and path.is_file():
        return f"line {find_line(path, row):,}"
    return f"row {row:,} (counted from 0)"


class FoundRow(NamedTuple):
    """A row of a trace.

    Attributes:
        name: Its line or number in the file, in words.
        place: Its prompt, layer and position, in words.
    """

    file: Path
    name: str
    place: str
    expert: int


def find_expert(source: TraceSource, layer: tuple[str, int] | None, *, least: int) -> FoundRow:
    """Return the first row with an expert from an id on.

    Args:
        source: A trace with such a row; it is read again up to there.
        layer: Stack and number of the layer to look at; None for all.
        least: The smallest id; below 0 for any row.
    """
    columns = [*_KEY, *(["stack"] if "stack" in source.columns else [])]
    file, num_rows = source.files[0], 0
    for path, table in source.iter_file_tables(columns):
        num_rows, file = (num_rows, file) if path == file else (0, path)
        found = table.column("expert").to_numpy() >= least
        if layer is not None and table.num_rows:
            found &= table.column("layer").to_numpy() == layer[1]
            found &= _have_stack(table, layer[0])
        if found.any():
            row = int(found.argmax())
            name, place = name_row(path, num_rows + row), describe_row(table, row)
            return FoundRow(path, name, place, table.column("expert")[row].as_py())
        num_rows += table.num_rows
    raise AssertionError(f"no expert from {least} on")


def _have_stack(table: pa.Table, stack: str) -> NDArray[np.bool_]:
    """Return which rows are of a stack."""
    words = take_words(table, "stack")
    is_meant = np.array([word == stack for word in words.dictionary.to_pylist()])
    if words.codes is None:
        return np.full(table.num_rows, is_meant[0])
    return is_meant[words.codes]
