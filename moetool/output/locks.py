"""Locks on open files, which end with the process that holds them, however it ends."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from moetool.errors import UsageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# A run that only checks whether a file is locked also locks it, for less than a millisecond.
_ATTEMPTS = 5
_PAUSE_S = 0.02

# On Windows others cannot read a locked byte, so it lies beyond everything that is written.
_LOCKED_BYTE = 1 << 30


def open_locked(path: Path) -> BinaryIO:
    """Return the file at a path, created if missing, under an exclusive lock.

    The lock ends when the file is closed. On a file system without locks, nothing is locked.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file cannot be opened, for example because it is a link.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        try:
            _lock_soon(file.fileno())
            # The previous holder may have moved or removed the file since it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def write_holder(file: BinaryIO) -> bytes:
    """Write the holder's process, host and start into a locked file, and return what was written."""
    holder = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    content = json.dumps(holder).encode()
    file.truncate(0)
    file.write(content)
    file.flush()
    return content


def refuse_as_held(target: Path, *, lock: Path | None) -> UsageError:
    """Return the error for a target that another run is writing.

    Args:
        target: File that both want to write.
        lock: File in which `write_holder` named the other run; None if there is none.
    """
    return UsageError(
        f"Another run{_name_holder(lock) if lock else ''} is writing '{target}'.",
        hint="Wait until it has ended, or choose another name.",
    )


def _name_holder(lock: Path) -> str:
    try:
        holder: Any = json.loads(lock.read_bytes())
        pid, host, since = int(holder["pid"]), str(holder["host"]), str(holder["since"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        # It has only just begun, or ended.
        return ""
    where = f" on {host}" if host != platform.node() and host.isprintable() else ""
    return f" (process {pid}{where}, since {since[:32]})" if since.isprintable() else ""


def _lock_soon(descriptor: int) -> None:
    for _ in range(_ATTEMPTS - 1):
        with suppress(BlockingIOError):
            return _lock(descriptor)
        time.sleep(_PAUSE_S)
    return _lock(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:

    def _lock(descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # Parts name their run, so those of two runs are not mixed even without locks.
            return
