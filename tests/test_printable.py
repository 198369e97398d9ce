"""Foreign text on a terminal: one line of limited length that does not steer the terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.printable import escape_json, printable, printable_number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 漢字 and 🙂", "plain, ünïcode, 漢字 and 🙂"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("two\nlines\r\n\ttabbed", r"two\nlines\r\n\ttabbed"),
        ("\x9b2J and \x85", r"\x9b2J and \x85"),
        ("gpj.\u202eexe \u2066x\u2069", r"gpj.\u202eexe \u2066x\u2069"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("half \ud800 of \udcff", r"half \ud800 of \udcff"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("", ""),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(12_000, "12,000"), (-7, "-7"), (10**18 - 1, "999,999,999,999,999,999")],
)
def test_a_number_is_shown_with_its_thousands(number: int, shown: str) -> None:
    assert printable_number(number) == shown


def test_a_number_of_hundreds_of_digits_is_shown_by_its_ends() -> None:
    assert printable_number(-(10**400) - 7) == "-1000000000000000000…000000007"


def test_anything_is_shown_as_a_text() -> None:
    assert printable(["a\n"]) == "['a\\n']"
    assert printable(None) == "None"


def test_a_long_text_keeps_both_ends() -> None:
    shown = printable("start" + "x" * 390_000 + "end", max_length=20)
    assert shown.startswith("start")
    assert shown.endswith("xend")
    assert "…" in shown
    assert len(shown) == 20


def test_a_text_that_fits_is_not_cut() -> None:
    assert printable("x" * 200) == "x" * 200
    assert len(printable("x" * 201)) == 200


@given(st.text(st.characters(), max_size=50), st.integers(1, 60))
def test_every_text_comes_out_printable_encodable_and_short(text: str, max_length: int) -> None:
    shown = printable(text, max_length=max_length)
    assert shown.isprintable()
    shown.encode()
    assert len(shown) <= max_length


def test_json_reads_the_same_and_steers_no_terminal() -> None:
    value = {"a\x9b2J": ["\u202e\u2028\x7f", "größer 漢字 🙂", "\ud800 \udcff \U000e0041", "b\n"]}
    text = escape_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "größer 漢字 🙂" in text
    assert json.loads(text) == value


@given(st.text(st.characters(), max_size=50))
def test_every_text_is_read_back_from_its_json(text: str) -> None:
    escaped = escape_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(escaped) == text
    assert escaped.isprintable()
