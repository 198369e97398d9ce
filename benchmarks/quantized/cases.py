"""Cases of a benchmark on a GPU, of which one that fails does not end the others."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.memory.training import release

_failed: list[str] = []


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Print what fails, remember that it did, free what it left, and go on."""
    start = time.monotonic()
    try:
        yield
    except Exception:  # noqa: BLE001 - one case must not end the others
        traceback.print_exc()
        _failed.append(what)
    release()
    print(f"# {what}: {time.monotonic() - start:.1f} s", flush=True)


def exit_if_failed() -> None:
    """End the process with 1 if a case failed."""
    if _failed:
        sys.exit(f"failed: {', '.join(_failed)}")
