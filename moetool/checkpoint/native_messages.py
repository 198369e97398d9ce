"""What libraries in other languages write to stderr past Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_messages_dropped() -> Iterator[None]:
    """Drop what is written to the process's stderr: Rust announces every panic that it raises."""
    try:
        kept = os.dup(2)
    except OSError:
        # There is no stderr.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
