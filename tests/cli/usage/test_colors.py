"""Errors in colour: on terminals, and elsewhere where colour is asked for."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from moetool.cli.errors import say_error
from moetool.cli.observer import TerminalObserver
from moetool.cli.output import has_color
from moetool.errors import InputError

ERROR = InputError("No model.", hint="Name one.", facts=["seen: nothing"])
PLAIN = "error: No model.\n  seen: nothing\nhint: Name one.\n"
IN_COLOR = (
    "\x1b[31m\x1b[1merror:\x1b[0m No model.\n  seen: nothing\n\x1b[1mhint:\x1b[0m Name one.\n"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _wants_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def show(act: Callable[[], None], *, stderr: io.StringIO | None = None) -> str:
    """Return what an action writes to stderr, which is a terminal unless given."""
    written = stderr or Terminal()
    with patch.object(sys, "stderr", written):
        act()
    return written.getvalue()


def test_labels_are_bold_and_errors_red_on_a_terminal() -> None:
    assert show(lambda: say_error(ERROR)) == IN_COLOR


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_user_may_want_no_colors(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    assert show(lambda: say_error(ERROR)) == PLAIN


def test_an_empty_no_color_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")

    assert has_color(Terminal())


def test_pipes_and_files_get_no_colors(tmp_path: Path) -> None:
    assert show(lambda: say_error(ERROR), stderr=io.StringIO()) == PLAIN
    with (tmp_path / "stderr").open("w") as file:
        assert not has_color(file)


def test_a_user_may_want_colors_in_pipes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert show(lambda: say_error(ERROR), stderr=io.StringIO()) == IN_COLOR
    warning = show(lambda: TerminalObserver(is_quiet=True).warn("x"), stderr=io.StringIO())
    assert warning == "\x1b[33m\x1b[1mwarning:\x1b[0m x\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert show(lambda: say_error(ERROR), stderr=io.StringIO()) == PLAIN


def test_warnings_are_yellow_on_a_terminal() -> None:
    shown = show(lambda: TerminalObserver(is_quiet=True).warn("Careful."))

    assert shown == "\x1b[33m\x1b[1mwarning:\x1b[0m Careful.\n"


def test_what_steers_a_terminal_is_escaped_in_colored_errors_too() -> None:
    error = InputError("No model '\x1b[31m'.", hint="Name one.")

    assert r"'\x1b[31m'" in show(lambda: say_error(error))
