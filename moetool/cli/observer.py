"""Show the run of a model on stderr: steps, a bar, announcements and warnings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from moetool.cli.bar import build_bar
from moetool.cli.output import paint_label, see_terminal
from moetool.cli.progress import say, show_status
from moetool.printable import printable
from moetool.report.renderer import View

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

_LONGEST_LINE = 1_000
# A step that takes less shows no bar.
_BAR_AFTER_S = 1.0


class TerminalObserver:
    """Shows announcements, and if stderr is a terminal the current step, and bars.

    A bar shows how much of a long step is done; that of the run has tokens per second. Both have the
    remaining time. Steps and bars vanish in the end.

    Attributes:
        is_quiet: Show nothing except warnings.
        is_silent: Show nothing at all.
    """

    def __init__(self, *, is_quiet: bool, is_silent: bool = False) -> None:
        self.is_quiet = is_quiet or is_silent
        self.is_silent = is_silent
        self._status = ExitStack()
        self._show_step: Callable[[str], None] | None = None
        self._words = ""
        self._step_started_s = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_step()

    @property
    def view(self) -> View:
        """The width and colour of pages on stderr."""
        return see_terminal(sys.stderr)

    def step(self, words: str) -> None:
        """Show the current step, until another begins, a line is printed or a bar appears."""
        if self._progress is not None:
            self._end_step()
        self._words, self._step_started_s = words, time.monotonic()
        if self._show_step is None:
            self._show_step = self._status.enter_context(show_status(is_quiet=self.is_quiet))
        self._show_step(words)

    def count(self, num_done: int, num_all: int, unit: str) -> None:
        """Show how much of the current step is done, if it takes long."""
        if self._progress is None:
            if self._is_hidden or time.monotonic() - self._step_started_s < _BAR_AFTER_S:
                return
            from rich.progress import TimeRemainingColumn

            self._show_bar(unit, TimeRemainingColumn(), label=self._words, total=num_all)
        assert self._progress is not None
        assert self._task is not None
        # At once, because messages of other languages may be dropped until the next time, and with
        # them what another thread would show.
        self._progress.update(self._task, completed=num_done, refresh=True)

    @property
    def _is_hidden(self) -> bool:
        return self.is_quiet or not sys.stderr.isatty()

    def _show_bar(self, unit: str, *columns: ProgressColumn, label: str, total: int) -> None:
        self._end_step()
        self._progress = build_bar(unit, columns, label=label)
        self._progress.start()
        self._task = self._progress.add_task(label, total=total, rate="")

    def _end_step(self) -> None:
        self._status.close()
        self._show_step = None
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def announce(self, line: str) -> None:
        """Print a line, unless asked to be quiet."""
        self._end_step()
        if not self.is_quiet:
            say(line)

    def warn(self, line: str) -> None:
        """Print a warning, even if asked to be quiet."""
        self._end_step()
        if self.is_silent:
            return
        warning = printable(f"warning: {line}", max_length=_LONGEST_LINE)
        sys.stderr.write(f"{paint_label(warning)}\n")

    def start(self, num_tokens: int) -> None:
        """Show the bar."""
        self._end_step()
        if self._is_hidden:
            return
        from rich.progress import TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        self._show_bar("tokens", *columns, label="tracing", total=num_tokens)

    def advance(self, num_tokens: int) -> None:
        """Move the bar."""
        if self._progress is None or self._task is None:
            return
        self._progress.advance(self._task, num_tokens)
        speed = self._progress.tasks[0].speed
        if speed:
            self._progress.update(self._task, rate=f"{speed:,.0f} tokens/s")
