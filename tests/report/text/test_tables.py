"""Plain tables: never wider than a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.report.renderer import View
from moetool.report.text.page import render_page
from moetool.report.text.tables import Cell, Items, draw_bar, make_table

WIDTH = 80


def render_table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = ()
) -> str:
    return render_page([[make_table(headers, rows, right=right)]], View(width=WIDTH))


def test_columns_are_aligned_as_asked_for() -> None:
    text = render_table(("name", "count"), [("a", "1"), ("long name", "1,000")], right=(1,))
    header, _, *rows = text.splitlines()
    assert header.split() == ["name", "count"]
    assert rows[0].startswith("a ")
    assert rows[1].startswith("long name")
    assert {len(line) for line in (header, *rows)} == {len(rows[1])}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=90)] * 3),
        max_size=4,
    )
)
def test_a_table_is_never_wider_than_a_terminal(rows: list[tuple[str, str, str]]) -> None:
    for line in render_table(("one", "two", "three"), rows).splitlines():
        assert len(line) <= WIDTH
        assert line == line.rstrip()


def test_headings_are_broken_before_cells_are_and_columns_keep_apart() -> None:
    names = ("first thing", "second thing", "third thing", "fourth thing", "fifth thing")
    text = render_table((*names, "last thing", "95%"), [("x" * 9,) * 6 + ("10%–20%",)])
    upper, lower, _, row = text.splitlines()
    assert upper.split() == ["first", "second", "third", "fourth", "fifth", "last"]
    assert lower.split() == ["thing"] * 6 + ["95%"]
    assert row.split() == ["x" * 9] * 6 + ["10%–20%"]
    assert len(re.findall(r"(?<=\S)\s{2,}(?=\S)", row)) == 6


@pytest.mark.parametrize("width", range(12, 60))
def test_lines_of_items_end_between_items(width: int) -> None:
    items = ("E0+E6 6.0", "E3+E5 6.0", "E3+E6 4.5")
    table = make_table(("a", "pairs"), [("1", Items(items))])
    _, _, *lines = render_page(
        [[table]], View(width=max(width, 4 + len("E0+E6 6.0,")))
    ).splitlines()
    shown = [line.removeprefix("1").strip() for line in lines]
    assert " ".join(shown) == ", ".join(items)
    assert all(line.rstrip(",").split(", ")[-1] in items for line in shown)


def test_a_word_that_is_too_long_is_folded_and_not_cut() -> None:
    word = "".join(f"{number:03}" for number in range(100))
    text = render_table(("name", "count"), [(word, "1")], right=(1,))
    _, _, *lines = text.splitlines()
    assert "".join(line.split()[0] for line in lines) == word


@pytest.mark.parametrize("word", ["[bold]x[/bold]", "[/]", ":fire:", ":warning:", "\\[a]"])
def test_words_are_printed_as_they_are(word: str) -> None:
    _, _, row = render_table(("name", "count"), [(word, "1")]).splitlines()
    assert row.split() == [word, "1"]


@pytest.mark.parametrize(
    ("share", "bar"),
    [(0, ""), (0.001, ""), (0.25, "█▎"), (0.5, "██▌"), (0.999, "█████"), (1, "█████")],
)
def test_a_bar_is_as_long_as_its_share_to_an_eighth_of_a_column(share: float, bar: str) -> None:
    assert draw_bar(share, width=5) == bar


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_never_has_a_shorter_bar(one: float, other: float) -> None:
    def length(share: float) -> float:
        bar = draw_bar(share, width=20)
        eighths = {"█": 8, "▉": 7, "▊": 6, "▋": 5, "▌": 4, "▍": 3, "▎": 2, "▏": 1}
        return sum(map(eighths.__getitem__, bar))

    assert (length(one) <= length(other)) or one > other
    assert abs(length(one) / 160 - one) <= 1 / 320 + 1e-9
