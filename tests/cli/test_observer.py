"""The steps and the bar of a run, on a terminal that is emulated."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from moetool.cli.observer import TerminalObserver
from tests.cli.emulated import Terminal, wait_for


@contextmanager
def observing(terminal: Terminal, *, is_quiet: bool = False) -> Iterator[TerminalObserver]:
    """Observe on a terminal."""
    # Not in a fixture, after which pytest puts its own stderr back.
    with patch.object(sys, "stderr", terminal), TerminalObserver(is_quiet=is_quiet) as observer:
        yield observer


def test_a_step_replaces_the_one_before_and_vanishes(terminal: Terminal) -> None:
    with observing(terminal) as observer:
        observer.step("starting")
        wait_for(terminal, "starting")
        observer.step("loading libraries")
        assert "starting" not in wait_for(terminal, "loading libraries")
    assert terminal.read_screen().strip() == ""


def test_a_line_stays_when_the_step_before_it_has_vanished(terminal: Terminal) -> None:
    with observing(terminal) as observer:
        observer.step("starting")
        wait_for(terminal, "starting")
        observer.announce("downloading 3 GB")
        assert terminal.read_screen().split("\n")[0] == "downloading 3 GB"
        assert "starting" not in terminal.read_screen()
        observer.step("reading")
        wait_for(terminal, "reading")
        observer.warn("not exact")
        assert "reading" not in terminal.read_screen()
    assert terminal.read_screen().split() == ["downloading", "3", "GB", "warning:", "not", "exact"]


def test_the_bar_shows_speed_and_remaining_time_and_vanishes(terminal: Terminal) -> None:
    with observing(terminal) as observer:
        observer.step("loading the weights")
        observer.start(4_000)
        observer.advance(1_000)
        observer.advance(1_000)
        screen = wait_for(terminal, "tokens/s")
        assert "loading" not in screen
        assert "2,000 of 4,000 tokens" in screen
        assert re.search(r"\d:\d\d:\d\d", screen)
    assert terminal.read_screen().strip() == ""


def test_a_long_step_shows_how_much_of_it_is_done(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with observing(terminal) as observer:
        observer.step("tokenizing")
        observer.count(1, 8, "prompts")
        assert "1 of 8" not in terminal.read_screen()
        monkeypatch.setattr("moetool.cli.observer._BAR_AFTER_S", 0.0)
        observer.step("loading the weights of {odd}[b]")
        observer.count(3, 8, "tensors")
        screen = wait_for(terminal, "3 of 8 tensors")
        assert "loading the weights of {odd}[b]" in screen
        observer.count(8, 8, "tensors")
        wait_for(terminal, "8 of 8 tensors")
        observer.start(4_000)
        observer.advance(1_000)
        assert "tensors" not in wait_for(terminal, "1,000 of 4,000 tokens")
    assert terminal.read_screen().strip() == ""


def test_an_error_leaves_no_step_behind(terminal: Terminal) -> None:
    def fail() -> None:
        with observing(terminal) as observer:
            observer.step("loading")
            wait_for(terminal, "loading")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert terminal.read_screen().strip() == ""


def test_an_observer_can_be_entered_again(terminal: Terminal) -> None:
    with observing(terminal) as observer:
        observer.step("first")
    with patch.object(sys, "stderr", terminal), observer:
        observer.step("second")
        wait_for(terminal, "second")
    assert terminal.read_screen().strip() == ""


def test_a_quiet_observer_shows_nothing_but_warnings(terminal: Terminal) -> None:
    with observing(terminal, is_quiet=True) as observer:
        observer.step("loading")
        observer.announce("downloading")
        observer.count(1, 10, "tensors")
        observer.start(10)
        observer.advance(10)
        assert terminal.getvalue() == ""
        observer.warn("not exact")
    assert terminal.read_screen() == "warning: not exact\n"


def test_a_pipe_gets_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalObserver(is_quiet=False) as observer:
        observer.step("loading")
        observer.count(1, 10, "tensors")
        observer.start(10)
        observer.advance(10)
    assert capsys.readouterr().err == ""
