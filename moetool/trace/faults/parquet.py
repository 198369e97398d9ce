"""Faults of Parquet files: other content, a missing end, damage."""

from __future__ import annotations

from pathlib import Path

from moetool.errors import InputError
from moetool.printable import printable

_MARK = b"PAR1"


def refuse_parquet(path: Path, error: Exception) -> InputError:
    """Return the error for a file that can't be read as Parquet.

    Args:
        path: The file.
        error: What pyarrow raised.
    """
    name = f"'{printable(path)}'"
    start, end = _read_ends(path)
    if not start:
        return InputError(
            f"{name} can't be read as a trace: it is empty.", hint="Write the file again."
        )
    if start != _MARK:
        return InputError(
            f"{name} can't be read as a trace: it isn't a Parquet file, in spite of its name.",
            hint="Let moetool import --detect FILE say what the file is.",
        )
    if end != _MARK:
        return InputError(
            f"{name} can't be read as a trace: its end is missing.",
            hint="Copy or write the whole file again: it is damaged.",
        )
    return InputError(
        f"{name} can't be read as a trace: it is damaged.",
        hint="Copy or write the whole file again.",
        facts=[f"seen: {printable(str(error).strip().partition(chr(10))[0])}"],
    )


def _read_ends(path: Path) -> tuple[bytes, bytes]:
    """Return the first and the last four bytes of a file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MARK))
            file.seek(-min(len(_MARK), file.seek(0, 2)), 2)
            return start, file.read()
    except OSError:
        return _MARK, _MARK
