"""Folders that one worker of a test run fills, and all others read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def fill_once(name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder of this test run that is filled by whichever worker asks first.

    The others wait for it. No test writes into it.
    """
    # Workers share this folder with the process that started them, which removes it at the end.
    parent = Path(os.environ["HF_HOME"])
    folder = parent / name
    with FileLock(parent / f"{name}.lock"):
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=parent))
            fill(unfinished)
            unfinished.rename(folder)
    return folder
