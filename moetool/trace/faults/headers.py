"""Faults of a table's header: columns that are missing, named differently, or not separated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.faults.csv_text import read_names
from moetool.trace.loads.metadata import REQUIRED_LOAD_COLUMNS

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "spaces"}
_COLUMNS_SHOWN = 12


def refuse_header(
    path: Path, names: Sequence[str], needed: Sequence[str], *, hint: str
) -> InputError:
    """Return the error for a table without all columns of a trace.

    Args:
        path: Its file.
        names: Its columns.
        needed: Those of a trace; one is missing.
        hint: What to do if the cause is unknown.
    """
    missing = next(name for name in needed if name not in names)
    if path.suffix == ".csv":
        delimiter = find_delimiter(path, needed) or find_delimiter(path, REQUIRED_LOAD_COLUMNS)
        if delimiter is not None:
            return refuse_delimiter(path, delimiter)
        if any(name.strip().lstrip("-").isdecimal() for name in names):
            return InputError(
                f"'{printable(path)}' begins with values, not with the names of its columns.",
                hint=f"Name the columns in its first line: {', '.join(needed)}.",
                facts=[_show(names)],
            )
    similar = next((name for name in names if name.strip().lower() == missing), None)
    if similar is not None:
        hint = f"Rename the column {printable(repr(similar), max_length=60)} to {missing!r}."
    return InputError(
        f"'{printable(path)}' is not a trace: it lacks the column {missing!r}.",
        hint=hint,
        facts=[_show(names)],
    )


def refuse_delimiter(path: Path, delimiter: str) -> InputError:
    """Return the error for a text file whose columns aren't separated by commas.

    Args:
        path: The file.
        delimiter: From `find_delimiter`.
    """
    return InputError(
        f"'{printable(path)}' separates its columns by {delimiter}, not by commas.",
        hint="Write it with commas, as pandas' to_csv does.",
    )


def find_delimiter(path: Path, needed: Sequence[str]) -> str | None:
    """Return what separates the columns of a text file, in words; None if it may be commas.

    Args:
        path: The file.
        needed: Columns that it has if they are separated so.
    """
    for delimiter, words in _DELIMITERS.items():
        try:
            names = [name.strip() for name in read_names(path, delimiter=delimiter)]
        except OSError:
            return None
        if all(name in names for name in needed):
            return words
    return None


def _show(names: Sequence[str]) -> str:
    return f"seen: {printable(', '.join(names[:_COLUMNS_SHOWN]))}"
