"""Interrupts that are repeated: libraries catch every exception while they try imports."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable

_INTERVAL_S = 0.2


def remind(prepare: Callable[[], bool]) -> None:
    """Interrupt the main thread repeatedly, from another one.

    Args:
        prepare: Called before each interrupt. Returns whether it is still needed.
    """
    # Not through `threading`, whose locks the interrupted code may hold.
    _thread.start_new_thread(_keep_reminding, (prepare,))


def _keep_reminding(prepare: Callable[[], bool]) -> None:
    while True:
        time.sleep(_INTERVAL_S)
        if not prepare():
            return
        _thread.interrupt_main()


def is_on_its_way(error: BaseException | None) -> bool:
    """Return whether an interrupt, or an exception caused by it, is being handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
