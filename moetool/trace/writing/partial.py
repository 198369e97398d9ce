"""The folder of an unfinished trace, held by one run at a time and released if that is killed."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from moetool.errors import UsageError
from moetool.output.locks import open_locked, refuse_as_held, write_holder
from moetool.output.targets import refuse_as_removed
from moetool.trace.writing.unfinished.part_files import COMPANION_SUFFIXES, is_part_name

LOCK_NAME = "_lock"
# Finished files: the trace, the metadata of a CSV, the probabilities, the saliency.
WHOLE_NAMES = ("_whole", "_whole.meta.json", "_whole.probabilities", "_whole.saliency")
# moetool 0.2 gave these names without the underscore.
_NAMES = {LOCK_NAME, *WHOLE_NAMES} | {name.removeprefix("_") for name in (LOCK_NAME, *WHOLE_NAMES)}
# Network file systems show what other hosts have made after up to a minute.
JOIN_TIMEOUT_S = 90.0
_JOIN_PAUSE_S = 0.1
_FOLDERS = (*COMPANION_SUFFIXES, "probabilities")


class PartialFolder:
    """The folder of an unfinished trace, taken for one run.

    Attributes:
        holder: What its lock says about the process that took it.

    Args:
        target: Trace that the run writes.
        discard: Take over and empty a folder that an earlier run left.
        resume: Take it over as it is.

    Raises:
        UsageError: Another run holds the folder, a run may not empty it, or, to resume, there is
            none.
    """

    def __init__(self, target: Path, *, discard: bool, resume: bool = False) -> None:
        self.path = partial_folder(target)
        self._lock = _take(target, discard=discard, resume=resume)
        try:
            if not resume:
                self._empty()
            self.holder = write_holder(self._lock)
        except BaseException:
            self._lock.close()
            raise

    @classmethod
    def join(cls, target: Path, *, holder: bytes, timeout_s: float = JOIN_TIMEOUT_S) -> Self:
        """Return the folder that another process of this run has taken.

        Args:
            target: Trace that the run writes.
            holder: What the other process wrote about itself, see `holder`.
            timeout_s: Time that a file system of several hosts has to show the folder here.

        Raises:
            UsageError: The folder is not there.
        """
        path = partial_folder(target)
        began = time.monotonic()
        while True:
            with suppress(OSError):
                lock = (path / LOCK_NAME).open("rb")
                if lock.read() == holder:
                    joined = cls.__new__(cls)
                    joined.path, joined._lock, joined.holder = path, lock, holder
                    return joined
                lock.close()
            if time.monotonic() - began >= timeout_s:
                raise UsageError(
                    f"Host {platform.node()} does not see '{path}', which the first process made.",
                    hint="Write the trace into a folder that all hosts share, under the same path.",
                )
            time.sleep(_JOIN_PAUSE_S)

    def check_held(self) -> None:
        """Check that the folder is still the one that this run took.

        Raises:
            UsageError: It was removed, perhaps for another run.
        """
        with suppress(OSError):
            found = os.lstat(self.path / LOCK_NAME)
            if os.path.samestat(os.fstat(self._lock.fileno()), found):
                return
        raise refuse_as_removed(self.path)

    @contextmanager
    def emptied_of_wholes(self) -> Iterator[None]:
        """Remove the merged files if the block fails: the parts hold all rows."""
        try:
            yield
        except BaseException:
            for name in WHOLE_NAMES:
                with suppress(OSError):
                    (self.path / name).unlink()
            raise

    def release(self) -> None:
        """Leave the folder and its content to other runs."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder with the files of this run, and release it."""
        with suppress(OSError):
            self._empty()
        if sys.platform == "win32":
            # Windows cannot remove an open file.
            self._lock.close()
        # While the lock is still held: a run that opened the file earlier will see that it is gone.
        with suppress(OSError):
            (self.path / LOCK_NAME).unlink()
            # Not empty if another run has just taken it over.
            self.path.rmdir()
        self._lock.close()
        # Network file systems keep a removed file under another name until it is closed.
        with suppress(OSError):
            self.path.rmdir()

    def list_files(self) -> list[Path]:
        """Return the files that runs put there, except the lock."""
        found = []
        for folder in (*(self.path / name for name in _FOLDERS), self.path):
            with suppress(FileNotFoundError):
                found += [path for path in sorted(folder.iterdir()) if _is_ours(path.name)]
        return [path for path in found if path != self.path / LOCK_NAME]

    def remove_file(self, path: Path) -> None:
        """Remove a file that a run put there, if it exists."""
        path.unlink(missing_ok=True)

    def _empty(self) -> None:
        """Remove the files that runs put there, except the lock."""
        for path in self.list_files():
            path.unlink(missing_ok=True)
        for name in _FOLDERS:
            with suppress(FileNotFoundError):
                (self.path / name).rmdir()


def partial_folder(target: Path) -> Path:
    """Return the folder that holds an unfinished trace's parts."""
    return target.with_name(f"{target.name}.partial")


def check_partial_folder(target: Path, *, discard: bool, resume: bool = False) -> None:
    """Check that a run may take the folder of a target's parts.

    Raises:
        UsageError: Another run holds it, a run may not empty it, or, to resume, there is none.
    """
    folder = partial_folder(target)
    if not os.path.lexists(folder):
        if resume:
            raise UsageError(
                f"No run left '{folder}', so there is nothing to resume.",
                hint="Leave out --resume.",
            )
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(
            f"'{folder}' is not a folder, but the parts of '{target.name}' go there.",
            hint="Choose another name.",
        )
    _check_contents(folder)
    # No run is writing to a folder without a lock.
    if os.path.lexists(folder / LOCK_NAME):
        with suppress(FileNotFoundError):
            _open_lock(target).close()
    if not (discard or resume) and _holds_parts(folder):
        raise UsageError(
            f"'{folder}' holds the rows of an unfinished run.",
            hint="Go on with `route-trace --resume`, or add --force to discard it and start over.",
        )


def _check_contents(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            inner = path.name in _FOLDERS and path.is_dir() and not path.is_symlink()
            names = [f"{path.name}/{part.name}" for part in path.iterdir()] if inner else []
            strange = [name for name in names if not is_part_name(name.partition("/")[2])]
            if not inner and (not _is_ours(path.name) or path.is_dir()):
                strange = [path.name]
            if strange:
                raise UsageError(
                    f"'{folder}' holds '{strange[0]}', which no run of moetool wrote.",
                    hint="Move it elsewhere, or choose another name for the trace.",
                )


def _is_ours(name: str) -> bool:
    """Return whether a run may have written a file of this name."""
    return name in _NAMES or is_part_name(name)


def _holds_parts(folder: Path) -> bool:
    return any(path.suffix == ".parquet" for path in folder.iterdir())


def _take(target: Path, *, discard: bool, resume: bool) -> BinaryIO:
    folder = partial_folder(target)
    while True:
        check_partial_folder(target, discard=discard, resume=resume)
        with suppress(FileExistsError):
            folder.mkdir()
        # The run that held it may have ended and removed it in the meantime.
        with suppress(FileNotFoundError):
            lock = _open_lock(target)
            try:
                # Before it was locked, another run may have put parts there.
                _check_contents(folder)
                if discard or resume or not _holds_parts(folder):
                    return lock
            except BaseException:
                lock.close()
                raise
            lock.close()


def _open_lock(target: Path) -> BinaryIO:
    path = partial_folder(target) / LOCK_NAME
    try:
        return open_locked(path)
    except BlockingIOError as error:
        raise refuse_as_held(target, lock=path) from error
