"""Messages that libraries in other languages write to stdout and stderr past Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def native_messages_dropped() -> Iterator[None]:
    """Drop everything that is written to the process's stdout and stderr.

    The tokenizers library prints every panic to stderr before it raises it, and unknown settings to
    stdout, where only data should go.
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
        # The stream is closed.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
