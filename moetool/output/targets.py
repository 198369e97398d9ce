"""Files that appear complete or not at all.

A target is replaced by renaming and never written into: if its name is a link, the link is replaced,
and the file that it led to stays as it was.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from moetool.errors import UsageError

REPLACE_HINT = "Choose another name, or add --force."
_OWN_STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}


def check_target_file(
    target: Path,
    *,
    replace_existing: bool,
    inputs: Iterable[Path] = (),
    hint: str = REPLACE_HINT,
) -> None:
    """Check that a file can be put at a path, before any work is done for it.

    Args:
        target: Path of the file.
        replace_existing: Accept an existing file or link.
        inputs: Files that the work reads; the target may not be one of them.
        hint: Hint of the error if something exists.

    Raises:
        UsageError: The path exists, is not that of a file, or no file can be created in its folder.
    """
    check_folder(target.parent)
    with saying_what_failed(target):
        found = _stat(target)
    if found is not None:
        _check_replaceable(target, found, inputs=inputs)
    if os.path.lexists(target) and not replace_existing:
        raise UsageError(f"'{target}' exists.", hint=hint)
    check_writable(target.parent)


def check_folder(folder: Path) -> None:
    """Check that a folder exists.

    Raises:
        UsageError: It doesn't, or is not a folder.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"'{folder}' is not a folder.", hint="Create it first, or name another.")


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder.

    Raises:
        UsageError: None can.
    """
    try:
        # It has no name or a unique one, and disappears even after a kill -9.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"Can't write to '{folder}': {error.strerror}.",
            hint="Name a folder that you may write to.",
        ) from error


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of what lies at a path, following links; None if there is nothing."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _check_replaceable(target: Path, found: os.stat_result, *, inputs: Iterable[Path]) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(f"'{target}' is a folder.", hint="Name a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"'{target}' is not a regular file.", hint="Name a file, or - for stdout.")
    for descriptor, name in _OWN_STREAMS.items():
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), found):
                raise UsageError(f"'{target}' is this command's {name}.", hint="Name another file.")
    for path in inputs:
        with suppress(OSError):
            if os.path.samestat(os.stat(path), found):
                raise UsageError(
                    f"'{target}' is an input of this command.", hint="Name another file."
                )


def check_names(paths: Iterable[Path]) -> None:
    """Check that the file system accepts the names derived from a target's, which may be too long.

    Raises:
        UsageError: One is not accepted.
    """
    for path in paths:
        with saying_what_failed(path), suppress(FileNotFoundError):
            os.lstat(path)


@contextmanager
def saying_what_failed(target: Path) -> Iterator[None]:
    """Turn errors of the system into a sentence that names the target.

    Raises:
        UsageError: The system raised an error.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"Can't write '{target}': {error.strerror or error}.",
            hint="Name a file that you may write, on a disk with enough space.",
        ) from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file for writing, with the permissions that the umask leaves.

    The file is removed if the block fails.

    Raises:
        FileExistsError: Something lies at the path, even a link.
    """
    with path.open("xb") as file:
        try:
            yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def write_file(content: bytes | Iterable[bytes], target: Path, *, replace_existing: bool) -> None:
    """Write a file that appears complete or not at all.

    Args:
        content: The whole content, or its parts in order.
        target: Path of the file.
        replace_existing: Replace a file that exists.

    Raises:
        UsageError: Something lies there that may not be replaced.
        OSError: The file cannot be written.
    """
    # Not derived from the target's name, which may have the maximum length.
    unfinished = target.with_name(f".moetool-{secrets.token_hex(8)}.unfinished")
    try:
        with new_file(unfinished) as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        put_in_place(unfinished, target, replace_existing=replace_existing)
    finally:
        unfinished.unlink(missing_ok=True)


def put_in_place(unfinished: Path, target: Path, *, replace_existing: bool) -> None:
    """Give a finished file its name, in one step.

    Raises:
        UsageError: Something lies there that may not be replaced.
    """
    if os.path.isdir(target):
        raise UsageError(f"'{target}' is a folder.", hint="Name a file in it.")
    if replace_existing:
        unfinished.replace(target)
        return
    try:
        # Unlike a rename, this fails if something appeared at the last moment.
        os.link(unfinished, target)
    except FileExistsError as error:
        raise UsageError(f"'{target}' exists.", hint=REPLACE_HINT) from error
    except OSError as error:
        # Some file systems have no hard links.
        if os.path.lexists(target):
            raise UsageError(f"'{target}' exists.", hint=REPLACE_HINT) from error
        unfinished.replace(target)
    else:
        unfinished.unlink()


def refuse_as_removed(path: Path) -> UsageError:
    """Return the error for a file or folder that a run needs until its end."""
    return UsageError(
        f"'{path}' was removed or changed during the run.",
        hint="Run again, and leave the folder as it is until the run has ended.",
    )
