"""The files of a trace: found, checked to be regular files, and opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pyarrow as pa

from moetool.errors import InputError
from moetool.git_lfs import POINTER_START, refuse_pointer
from moetool.printable import printable
from moetool.trace.companions import PROBABILITIES_SUFFIX

# The end of a hint, for files of other tools.
IMPORT_HINT = "`moetool import --detect` shows what a file of another tool is."
# Opening one of these can wait forever; only files and folders are ever opened.
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def find_files(path: Path) -> tuple[Path, ...]:
    """Return the file at a path, or the Parquet parts in the folder at a path, in name order.

    Raises:
        InputError: There is nothing at the path, or nothing that can be a trace.
    """
    mode = find_mode(path)
    if mode is None:
        raise InputError(
            f"No trace at '{printable(path)}': no such file or folder.",
            hint="Make one with: moetool route-trace demo --prompts sample_prompts -o trace.parquet",
        )
    if not stat.S_ISDIR(mode):
        _check_is_file(path, mode, hint="Name a trace file, or a folder of parts.")
        if path.suffix not in (".parquet", ".csv"):
            raise InputError(
                f"'{printable(path)}' is neither a .parquet nor a .csv file.",
                hint=f"Name a trace file or a folder; {IMPORT_HINT}",
            )
        return (path,)
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(
            f"The folder '{printable(path)}' can't be read: {error.strerror}.",
            hint="Name a folder you may read.",
        ) from error
    files = tuple(
        path / name
        for name in names
        if name.endswith(".parquet") and not name.endswith(PROBABILITIES_SUFFIX)
    )
    if not files:
        raise InputError(
            f"'{printable(path)}' holds no Parquet files.",
            hint=f"Name a trace, or a folder of its parts; {IMPORT_HINT}",
        )
    for file in files:
        _check_is_file(file, find_mode(file), hint="Remove it from the folder of parts.")
    return files


def find_mode(path: Path) -> int | None:
    """Return the `stat` mode of what lies at a path; None if there is nothing.

    Raises:
        InputError: The path cannot be looked at.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise InputError(
            f"'{printable(path)}' can't be read: {error.strerror}.",
            hint="Name a trace file or a folder that you may read.",
        ) from error


def read_small_file(path: Path, *, most_bytes: int) -> bytes | None:
    """Return the content of a file; None if nothing lies at the path.

    Raises:
        InputError: It is not a file, is longer than `most_bytes`, or cannot be read.
    """
    mode = find_mode(path)
    if mode is None:
        return None
    _check_is_file(path, mode, hint="Remove it to read the table alone.")
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(
            f"'{printable(path)}' can't be read: {error.strerror}.",
            hint="Remove it to read the table alone.",
        ) from error
    if len(content) > most_bytes:
        raise InputError(
            f"'{printable(path)}' is longer than {most_bytes:,} bytes.",
            hint="Remove it to read the table alone.",
        )
    return content


def open_file(path: Path) -> pa.NativeFile:
    """Open a file for pyarrow, whose own functions only take names in UTF-8.

    Raises:
        InputError: It is a pointer of Git LFS.
    """
    file = pa.OSFile(os.fsencode(path))
    refuse_pointer(file.read(len(POINTER_START)), path=path)
    file.seek(0)
    return file


def _check_is_file(path: Path, mode: int | None, *, hint: str) -> None:
    if mode is not None and stat.S_ISREG(mode):
        return
    seen = next((name for test, name in _KINDS if mode is not None and test(mode)), None)
    raise InputError(
        f"'{printable(path)}' is {seen or 'a broken link'}, not a file.",
        hint=hint,
    )
