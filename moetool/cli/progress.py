"""Show the current step, or how much is done, on a line of stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moetool.printable import printable

_LONGEST_LINE = 1_000
# Libraries take seconds to load, so there is something to show before the first step.
_FIRST_STEP = "loading libraries"


def say(line: str | None) -> None:
    """Print a line for people; nothing for None."""
    if line is not None:
        sys.stderr.write(f"{printable(line, max_length=_LONGEST_LINE)}\n")


@contextmanager
def show_status(*, is_quiet: bool, delay_s: float = 0.0) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on a line that vanishes in the end.

    It shows nothing if asked to be quiet, or if stderr is not a terminal. Enter it before libraries
    are imported, which is the first step that it shows.

    Args:
        is_quiet: Show nothing.
        delay_s: Time after which the line appears. Work that is done by then shows none.
    """
    if is_quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    def as_line(words: str) -> Text:
        return Text(printable(words), no_wrap=True, overflow="ellipsis")

    status = Console(stderr=True).status(as_line(_FIRST_STEP))
    starter = threading.Timer(delay_s, status.start)
    starter.daemon = True
    if delay_s:
        starter.start()
    else:
        status.start()
    try:
        yield lambda words: status.update(as_line(words))
    finally:
        starter.cancel()
        if starter.is_alive():
            # It may be starting the line at this moment.
            starter.join()
        status.stop()
