"""Show the current step, or how much is done, on a line of stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moetool.printable import printable

if TYPE_CHECKING:
    from rich.status import Status
    from rich.text import Text

_LONGEST_LINE = 1_000
# Libraries take seconds to load, so there is something to show before the first step.
_FIRST_STEP = "loading libraries"


def say(line: str | None) -> None:
    """Print a line for people; nothing for None."""
    if line is not None:
        sys.stderr.write(f"{printable(line, max_length=_LONGEST_LINE)}\n")


class StatusLine:
    """A line that shows the current step; without a status, it shows nothing.

    Args:
        status: Shows the words, animated by a thread.
        starter: Starts the status, unless it has been started without it.
    """

    def __init__(
        self, status: Status | None = None, starter: threading.Timer | None = None
    ) -> None:
        self._status = status
        self._starter = starter

    def __call__(self, words: str) -> None:
        """Show a step."""
        if self._status is not None:
            self._status.update(_as_line(words))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the line away during a block, and end its thread."""
        if self._status is None or (self._starter is not None and self._starter.is_alive()):
            yield
            return
        self._status.stop()
        try:
            yield
        finally:
            self._status.start()


@contextmanager
def show_status(*, is_quiet: bool, delay_s: float = 0.0) -> Iterator[StatusLine]:
    """Yield a function that shows the current step on a line that vanishes in the end.

    It shows nothing if asked to be quiet, or if stderr is not a terminal. Enter it before libraries
    are imported, which is the first step that it shows.

    Args:
        is_quiet: Show nothing.
        delay_s: Time after which the line appears. Work that is done by then shows none.
    """
    if is_quiet or not sys.stderr.isatty():
        yield StatusLine()
        return
    from rich.console import Console

    status = Console(stderr=True).status(_as_line(_FIRST_STEP))
    starter = threading.Timer(delay_s, status.start)
    starter.daemon = True
    if delay_s:
        starter.start()
    else:
        status.start()
    try:
        yield StatusLine(status, starter)
    finally:
        starter.cancel()
        if starter.is_alive():
            # It may be starting the line at this moment.
            starter.join()
        status.stop()


def _as_line(words: str) -> Text:
    from rich.text import Text

    return Text(printable(words), no_wrap=True, overflow="ellipsis")
