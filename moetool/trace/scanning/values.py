"""Checks of single rows: numbers that no trace has, and weights that are not weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.decisions import NO_EXPERT
from moetool.trace.faults.rows import name_row
from moetool.trace.scanning.fault_log import VALUES, WEIGHTS, FaultLog, LoggedFault
from moetool.trace.scanning.places import describe_row

_LEAST = {"position": 0, "layer": 0, "rank": 0, "expert": NO_EXPERT}
_HINTS = {
    "position": "Count positions from 0.",
    "layer": "Number layers from 0.",
    "rank": "Count ranks from 0.",
    "expert": "Number experts from 0, with -1 for a choice that ran no expert.",
}
REPAIR_HINT = (
    "Trace again; `moetool validate` lists all faults, and --no-validate (validate=False in Python) "
    "counts the rows as they are."
)


def check_values(
    path: Path, table: pa.Table, *, first_row: int, is_checked: bool, log: FaultLog | None
) -> None:
    """Check the numbers of each row of a table.

    Args:
        path: File that holds it.
        table: With at least one row.
        first_row: Number of its first row in the file.
        is_checked: Check weights, too.
        log: Note faults there instead of refusing the table.

    Raises:
        InputError: A number is out of range.
    """
    for name, least in _LEAST.items():
        if name not in table.column_names:
            continue
        seen = pc.min(table.column(name)).as_py()
        if seen >= least:
            continue
        is_wrong = table.column(name).to_numpy() < least
        if log is None:
            row = int(is_wrong.argmax())
            raise InputError(
                f"'{printable(path)}' has {name} {table.column(name)[row].as_py()}, below {least}, "
                f"in {name_row(path, first_row + row)}.",
                hint=_HINTS[name],
                facts=[f"seen: {describe_row(table, row)}"],
            )
        where = name_row(path, first_row + int(is_wrong.argmax()))
        words = f"has {name} {{{name}}}, below {least}, in {where}"
        fault = describe_logged(path, table, is_wrong, words)
        log.add(VALUES, fault, number=int(is_wrong.sum()))
    if not is_checked or "weight" not in table.column_names:
        return
    weight = table.column("weight").to_numpy()
    is_wrong = ~(np.isfinite(weight) & (weight >= 0))
    if is_wrong.any() and log is not None:
        where = name_row(path, first_row + int(is_wrong.argmax()))
        fault = describe_logged(path, table, is_wrong, f"has a weight of {{weight:g}} in {where}")
        log.add(WEIGHTS, fault, number=int(is_wrong.sum()))
    elif is_wrong.any():
        row = int(is_wrong.argmax())
        raise InputError(
            f"'{printable(path)}' has a weight of {weight[row]} in {name_row(path, first_row + row)}.",
            hint=REPAIR_HINT,
            facts=[f"seen: {describe_row(table, row)}"],
        )


def keep_numbered(table: pa.Table) -> pa.Table:
    """Return the rows of a table whose numbers are in range."""
    kept = np.ones(table.num_rows, dtype=bool)
    for name, least in _LEAST.items():
        if name in table.column_names:
            kept &= table.column(name).to_numpy() >= least
    return table if kept.all() else table.filter(pa.array(kept))


def describe_logged(
    path: Path, table: pa.Table, is_wrong: NDArray[np.bool_], words: str
) -> LoggedFault:
    """Return the fault of the first wrong row.

    Args:
        path: File that holds the table.
        table: Its rows.
        is_wrong: At least one is. # (num_rows,)
        words: The fault, with the names of columns in braces for the row's values.
    """
    values = table.slice(int(is_wrong.argmax()), 1).to_pylist()[0]
    return LoggedFault(
        words.format_map(values),
        printable(path),
        prompt_id=values["prompt_id"],
        stack=values.get("stack", "decoder"),
        layer=values["layer"],
        position=values["position"],
    )
