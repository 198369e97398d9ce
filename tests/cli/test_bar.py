"""The bar that shows how many of some things are done, on a terminal that is emulated."""

from __future__ import annotations

import io
import re
import sys
from unittest.mock import patch

import pytest

from moetool.cli.bar import show_bar
from tests.cli.emulated import Terminal, wait_for


def test_the_bar_shows_the_number_that_is_done_and_the_last_name(terminal: Terminal) -> None:
    with patch.object(sys, "stderr", terminal), show_bar("models", is_quiet=False) as show:
        assert terminal.read_screen().strip() == ""
        show(3, 1_200, "mixtral-8x7b")
        wait_for(terminal, "3 of 1,200 models")
        show(4, 1_200, "demo")
        screen = wait_for(terminal, "4 of 1,200 models")
        assert re.search(r"\d:\d\d:\d\d demo$", screen, re.M)
        assert "mixtral" not in screen
    assert terminal.read_screen().strip() == ""


def test_a_name_neither_steers_the_terminal_nor_is_read_as_markup(terminal: Terminal) -> None:
    with patch.object(sys, "stderr", terminal), show_bar("models", is_quiet=False) as show:
        show(1, 2, "[red]a\x1b[2J")
        wait_for(terminal, "[red]a")
    assert "\x1b[2J" not in terminal.getvalue()


def test_a_failure_takes_the_bar_away(terminal: Terminal) -> None:
    def fail() -> None:
        with patch.object(sys, "stderr", terminal), show_bar("models", is_quiet=False) as show:
            show(1, 2, "demo")
            wait_for(terminal, "1 of 2 models")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert terminal.read_screen().strip() == ""


@pytest.mark.parametrize("is_quiet", [True, False])
def test_quiet_runs_and_pipes_show_nothing(is_quiet: bool, terminal: Terminal) -> None:
    stderr = terminal if is_quiet else io.StringIO()
    with patch.object(sys, "stderr", stderr), show_bar("models", is_quiet=is_quiet) as show:
        show(1, 2, "demo")
    assert stderr.getvalue() == ""
