"""Lines of words: labelled facts, notes that stand apart, and lines to copy."""

from __future__ import annotations

from rich.console import RenderableType

from moetool.report.renderer import View
from moetool.report.text.lines import make_fact, make_notes, make_paragraphs, make_whole_lines
from moetool.report.text.page import render_page


def lines_of(*items: RenderableType, width: int | None = None) -> list[str]:
    return render_page([items], View(width=width)).splitlines()


def test_a_fact_that_is_cut_goes_on_below_its_own_beginning() -> None:
    first, second = lines_of(make_fact("label", "so " * 23 + "end"))
    assert first == "label       " + " ".join(["so"] * 23)
    assert second == " " * 12 + "end"


def test_the_second_line_of_a_note_is_indented() -> None:
    lines = lines_of(*make_notes(["so " * 26 + "end", "", "another"]))
    assert lines == [" ".join(["so"] * 26), "  end", "another"]


def test_each_paragraph_begins_on_its_own_line() -> None:
    assert lines_of(*make_paragraphs(["so " * 26 + "end", "", "another"])) == [
        " ".join(["so"] * 26),
        "end",
        "another",
    ]


def test_prose_uses_a_wide_terminal_up_to_a_length_that_can_be_read() -> None:
    paragraphs = make_paragraphs(["so " * 100])
    lengths = {width: max(map(len, lines_of(*paragraphs, width=width))) for width in (60, 100, 200)}
    assert lengths == {60: 59, 100: 98, 200: 119}


def test_a_line_to_copy_stays_whole() -> None:
    line = "--flag=" + "x" * 300 + "\x1b"
    assert lines_of(*make_whole_lines([line]), width=60) == [
        f"{line[:-1]}\N{REPLACEMENT CHARACTER}"
    ]
