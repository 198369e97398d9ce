"""The line that shows the current step: from the first moment, or only for work that takes long."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable

import pytest

from moetool.cli.progress import show_status

LONGER_THAN_ANY_TEST_S = 3600.0
PATIENCE_S = 60.0


class Terminal(io.StringIO):
    """A terminal's stderr."""

    def isatty(self) -> bool:
        return True


MakeTerminal = Callable[[], Terminal]


@pytest.fixture
def make_terminal(monkeypatch: pytest.MonkeyPatch) -> MakeTerminal:
    """Put a terminal in place of stderr, which pytest replaces before each test."""

    def make() -> Terminal:
        shown = Terminal()
        monkeypatch.setattr(sys, "stderr", shown)
        monkeypatch.setenv("TERM", "xterm")
        return shown

    return make


def wait_for(words: str, terminal: Terminal) -> None:
    """Wait until a terminal shows words, and fail if it never does."""
    last = time.monotonic() + PATIENCE_S
    while words not in terminal.getvalue():
        assert time.monotonic() < last
        time.sleep(0.01)


def test_something_is_shown_before_the_first_step(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    with show_status(is_quiet=False) as show:
        wait_for("loading libraries", terminal)
        show("simulating [red]demo\x1b[2J")
        wait_for("simulating [red]demo", terminal)
    assert "\x1b[2J" not in terminal.getvalue()


def test_work_that_is_done_soon_shows_no_line(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    with show_status(is_quiet=False, delay_s=LONGER_THAN_ANY_TEST_S) as show:
        show("inspecting demo")
    assert terminal.getvalue() == ""


def test_work_that_takes_long_shows_its_latest_step(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    with show_status(is_quiet=False, delay_s=0.01) as show:
        show("inspecting demo")
        wait_for("inspecting demo", terminal)
    assert "loading libraries" not in terminal.getvalue()


def test_a_long_step_is_cut_where_the_terminal_ends(
    make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = make_terminal()
    monkeypatch.setenv("COLUMNS", "60")
    with show_status(is_quiet=False) as show:
        show("a step " * 100)
        wait_for("…", terminal)
    assert "a step a step" in terminal.getvalue()
    assert "a step " * 9 not in terminal.getvalue()


def test_a_pause_takes_the_line_away_and_ends_its_thread(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    before = set(threading.enumerate())
    with show_status(is_quiet=False) as show:
        show("before the pause")
        wait_for("before the pause", terminal)
        animating = set(threading.enumerate()) - before
        assert animating
        with show.paused():
            for thread in animating:
                thread.join(PATIENCE_S)
            assert set(threading.enumerate()) <= before
            length = len(terminal.getvalue())
            show("in the pause")
            assert len(terminal.getvalue()) == length
        wait_for("in the pause", terminal)


def test_a_pause_does_not_show_a_line_whose_time_has_not_come(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    with show_status(is_quiet=False, delay_s=LONGER_THAN_ANY_TEST_S) as show, show.paused():
        show("a step")
    assert terminal.getvalue() == ""


def test_a_failure_takes_the_line_away(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    with pytest.raises(ZeroDivisionError), show_status(is_quiet=False):
        _ = 1 / 0
    # The cursor is shown again.
    assert "\x1b[?25h" in terminal.getvalue()


@pytest.mark.parametrize("is_quiet", [True, False])
def test_quiet_runs_and_pipes_show_nothing(
    is_quiet: bool, make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = make_terminal()
    monkeypatch.setattr(Terminal, "isatty", lambda _: is_quiet)
    with show_status(is_quiet=is_quiet) as show:
        show("a step")
    assert terminal.getvalue() == ""
