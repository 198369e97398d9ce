"""What libraries in other languages write to stdout and stderr past Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def native_messages_dropped() -> Iterator[None]:
    """Drop what is written to the process's stdout and stderr.

    The tokenizers library announces every panic on stderr before it raises it, and names settings
    that it does not know on stdout, where data goes.
    """
    with ExitStack() as stack:
        for descriptor in (1, 2):
            stack.enter_context(_dropped(descriptor))
        yield


@contextmanager
def _dropped(descriptor: int) -> Iterator[None]:
    try:
        kept = os.dup(descriptor)
    except OSError:
        # It is closed.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
