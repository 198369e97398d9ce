"""Steps that a Ctrl-C or a SIGTERM may precede or follow, but not interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """Delay a Ctrl-C, or a SIGTERM that is handled, until the block has ended."""
    # Python interrupts only the main thread, and knows only handlers that were set from Python.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }
    held: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            first, frame = held[0]
            handlers[signal.Signals(first)](first, frame)
