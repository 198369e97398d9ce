"""Pages as text: with colour and without, on a terminal and in a file."""

from __future__ import annotations

import re

import pytest

from moetool.report.renderer import View
from moetool.report.text.lines import make_notes, make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, join_parts, style_words
from moetool.report.text.tables import Bar, make_table

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def make_blocks() -> list[Block]:
    verdict = join_parts([style_words("It fits:", Style.STRONG), "58.5 GiB to spare."])
    row = (style_words("yes", Style.GOOD), "x" * 90, Bar(0.5))
    return [
        make_paragraphs([verdict]),
        [make_table(("fits", "name", "share"), [row])],
        [],
        make_notes(["A note."]),
    ]


def test_an_empty_line_separates_blocks_and_empty_blocks_leave_no_trace() -> None:
    text = render_page([make_paragraphs(["a", "b"]), [], make_paragraphs(["c"])], View())
    assert text == "a\nb\n\nc\n"


def test_colours_change_nothing_else() -> None:
    plain = render_page(make_blocks(), View(width=80))
    coloured = render_page(make_blocks(), View(width=80, has_color=True))
    assert "\x1b" not in plain
    assert "\x1b[1mIt fits:\x1b[0m" in coloured
    assert "\x1b[32myes" in coloured
    assert "\x1b[2mA note.\x1b[0m" in coloured
    shown = [line.rstrip() for line in ESCAPES.sub("", coloured).splitlines()]
    assert shown == plain.splitlines()


def test_no_cell_is_broken_where_there_is_no_terminal() -> None:
    assert any("x" * 90 in line for line in render_page(make_blocks(), View()).splitlines())


def test_columns_move_together_before_a_cell_is_broken() -> None:
    table = make_table(("a", "b", "c"), [("x" * 19, "y" * 19, "z" * 19)])
    shown = {width: render_page([[table]], View(width=width)).splitlines()[2] for width in (60, 80)}
    assert shown[60] == " ".join(letter * 19 for letter in "xyz")
    assert shown[80] == "   ".join(letter * 19 for letter in "xyz")


def test_a_sentence_in_a_cell_is_wrapped_before_columns_move_together() -> None:
    row = ("so " * 30, "y" * 19)
    table = make_table(("a", "b"), [row])
    assert "   " + "y" * 19 in render_page([[table]], View(width=80))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_holds_every_line(width: int) -> None:
    lines = render_page(make_blocks(), View(width=width)).splitlines()
    assert max(map(len, lines)) <= width
    assert any("x" * 90 in line for line in lines) is (width >= 120)


@pytest.mark.parametrize(
    "environment",
    [{"FORCE_COLOR": "1", "COLUMNS": "20"}, {"NO_COLOR": "1", "TERM": "dumb"}],
    ids=["forced", "refused"],
)
def test_a_page_depends_on_nothing_but_its_view(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    views = (View(), View(width=80), View(width=100, has_color=True))
    before = [render_page(make_blocks(), view) for view in views]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert [render_page(make_blocks(), view) for view in views] == before


def test_a_bar_narrows_where_words_need_the_space() -> None:
    table = make_table(("a", "b", "share"), [("x" * 26, "y" * 26, Bar(1.0))])
    lengths = {width: render_page([[table]], View(width=width)).count("█") for width in (60, 80)}
    assert lengths[80] == 20
    assert 0 < lengths[60] < 20
