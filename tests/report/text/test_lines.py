"""Lines of words: labelled facts, and notes that stand apart."""

from __future__ import annotations

from moetool.report.text.lines import list_fact, list_notes, wrap_paragraphs


def test_a_fact_that_is_cut_goes_on_below_its_own_beginning() -> None:
    first, second = list_fact("label", "so " * 23 + "end")
    assert first == "label       " + " ".join(["so"] * 23)
    assert second == " " * 12 + "end"


def test_the_second_line_of_a_note_is_indented() -> None:
    lines = list_notes(["so " * 26 + "end", "another"])
    assert lines == [" ".join(["so"] * 26), "  end", "another"]


def test_each_paragraph_begins_on_its_own_line() -> None:
    assert wrap_paragraphs(["so " * 26 + "end", "", "another"]) == [
        " ".join(["so"] * 26),
        "end",
        "another",
    ]
