"""Turns of threads at work for which functions of libraries are replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A block may be inside another one.
_lock = threading.RLock()


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one thread at a time into all blocks with this, or into functions that it decorates.

    While a skeleton is built or simulated, functions of torch and transformers are replaced, and those
    belong to the process: two threads would put back each other's.
    """
    with _lock:
        yield
