"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moetool.checkpoint.files import read_json
from moetool.checkpoint.stated.quantization import find_method
from moetool.errors import InputError, UsageError
from moetool.output.interrupts import holding_interrupts
from moetool.output.locks import open_locked, refuse_as_held, write_holder
from moetool.output.targets import REPLACE_HINT, check_folder, check_writable
from moetool.registration import METHOD

_LOCK = ".moetool-lock"


def check_target_folder(target: Path, *, replace_existing: bool) -> None:
    """Check that a folder can be put at a path, before any work is done for it.

    Raises:
        UsageError: Something lies there that may not be replaced, or no folder can be created next
            to it.
    """
    if os.path.lexists(target):
        if not replace_existing:
            raise UsageError(f"'{target}' exists.", hint=REPLACE_HINT)
        if not _is_replaceable(target):
            raise UsageError(
                f"'{target}' isn't a folder that moetool quantize wrote: it isn't replaced.",
                hint="Choose another name, or remove it first.",
            )
    check_folder(target.parent)
    check_writable(target.parent)


@contextmanager
def folder_in_place(target: Path, *, replace_existing: bool) -> Iterator[Path]:
    """Yield the folder `<target>.partial`, which becomes the target if the block succeeds.

    Otherwise it is removed. So is one that a killed run left behind.

    Raises:
        UsageError: Another run writes it, or it isn't one that a run left behind, or something lies
            at the target that may not be replaced.
        OSError: Files can't be written.
    """
    check_target_folder(target, replace_existing=replace_existing)
    partial = target.with_name(f"{target.name}.partial")
    lock = partial / _LOCK
    if os.path.lexists(partial) and not os.path.isfile(lock):
        raise UsageError(
            f"'{partial}' exists, and no run of moetool quantize left it behind.",
            hint="Choose another name for the output, or remove it first.",
        )
    partial.mkdir(exist_ok=True)
    try:
        held = open_locked(lock)
    except BlockingIOError as error:
        raise refuse_as_held(target, lock=lock) from error
    try:
        with held:
            write_holder(held)
            _remove_all(partial, except_for=_LOCK)
            yield partial
            check_target_folder(target, replace_existing=replace_existing)
            with holding_interrupts():
                lock.unlink()
                _put_in_place(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_replaceable(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    try:
        return find_method(read_json(target / "config.json", missing="")) == METHOD
    except InputError:
        return False


def _remove_all(folder: Path, *, except_for: str) -> None:
    for entry in os.scandir(folder):
        if entry.name == except_for:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _put_in_place(partial: Path, target: Path) -> None:
    """Give the folder its name. One that is replaced keeps its name until that moment."""
    if not target.exists():
        partial.rename(target)
        return
    replaced = target.with_name(f".moetool-{secrets.token_hex(8)}.replaced")
    target.rename(replaced)
    try:
        partial.rename(target)
    except OSError:
        with suppress(OSError):
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
