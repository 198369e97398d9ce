"""Pointers that Git LFS leaves in place of files that were not fetched."""

from __future__ import annotations

from moetool.errors import InputError

# Every pointer begins so (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
POINTER_START = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(start: bytes, *, path: object) -> None:
    """Refuse a file that is a pointer.

    Args:
        start: Its first bytes, at least as many as `POINTER_START` has unless it is shorter.
        path: The file, for the error message.

    Raises:
        InputError: It is a pointer.
    """
    if start.startswith(POINTER_START):
        raise InputError(
            f"'{path}' is a Git LFS pointer: the file itself was not fetched.",
            hint="Run `git lfs pull` in its folder.",
        )
