"""Results show themselves in a notebook: a small table, whose texts are inert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest

import moetool
from moetool.plain import Tabular
from tests.analysis.random_traces import make_random_trace
from tests.report.examples import make_counts, make_result
from tests.report.inspect.inspections import make_inspection
from tests.report.memory.estimates import make_full_estimate

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><b>',
    "\u202eright to left",
    "\x1b[31m",
    "a\u2028b",
    "</td></table>",
    "{{ 7 * 7 }}",
    "x" * 10_000,
)


@dataclass(frozen=True)
class Words(Tabular):
    """A result with rows of any words."""

    words: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Words: {self.words[0]}>"

    def to_dict(self) -> dict[str, Any]:
        return {"words": list(self.words)}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        return {"number": int, "word": str, "share": float | None}

    def to_rows(self) -> list[dict[str, Any]]:
        return [
            {"number": 1000 * n, "word": word, "share": n / 3 if n else None}
            for n, word in enumerate(self.words)
        ]


class Reader(HTMLParser):
    """Collects the elements and the text of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self._cell = tag in ("th", "td")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def read(result: Any) -> Reader:
    reader = Reader()
    reader.feed(result._repr_html_())
    reader.close()
    return reader


def test_the_first_rows_stand_below_the_headline_and_above_what_there_is_more() -> None:
    shown = read(Words(tuple("abcdefgh"), notes=("One.", "Two.")))
    assert shown.rows[0] == ["number", "word", "share"]
    assert shown.rows[1:] == [
        ["0", "a", "–"],
        ["1,000", "b", "0.3333"],
        ["2,000", "c", "0.6667"],
        ["3,000", "d", "1"],
        ["4,000", "e", "1.333"],
    ]
    assert shown.text.startswith("Words: a")
    assert shown.text.endswith(
        "the first 5 rows · all rows and 3 columns: .to_frame() · everything: .to_dict() · "
        "2 notes: .notes"
    )


def test_a_single_row_stands_upright() -> None:
    assert read(Words(("a",))).rows == [["number", "0"], ["word", "a"], ["share", "–"]]


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_text_is_inert(word: str) -> None:
    for result in (Words((word, word)), Words((word,))):
        shown = read(result)
        allowed = {"div", "p", "strong", "small", "table", "thead", "tbody", "tr", "th", "td"}
        assert {tag for tag, _ in shown.elements} <= allowed
        assert {name for _, attributes in shown.elements for name in attributes} <= {
            *("class", "style", "scope")
        }
        html = result._repr_html_()
        assert len(html) < 3_000
        assert not set("\x1b\u202e\u2028") & set(html)


def test_formulas_are_not_typeset() -> None:
    (_, attributes), *_ = read(Words(("$x$",))).elements
    assert attributes["class"] == "tex2jax_ignore mathjax_ignore"


def list_results() -> Iterator[Any]:
    frame = make_random_trace((30, 20, 25, 15)).to_pandas()
    yield make_inspection()
    yield make_full_estimate()
    yield make_result(make_counts(["code", "prose"]))
    yield moetool.measure_balance(frame)
    yield moetool.measure_confidence(frame)
    yield moetool.measure_coactivation(frame)
    yield moetool.measure_tokens(frame, min_count=2)


def test_every_kind_of_result_is_small_and_names_its_columns() -> None:
    for result in list_results():
        shown = read(result)
        names = {name for row in shown.rows for name in row}
        assert names & set(result.column_types())
        assert len(result._repr_html_()) < 8_000
        assert repr(result)[1:20] in shown.text


def test_colours_are_those_of_the_page() -> None:
    for result in list_results():
        styles = {attributes.get("style") or "" for _, attributes in read(result).elements}
        assert not any("color" in style or "background" in style for style in styles)
