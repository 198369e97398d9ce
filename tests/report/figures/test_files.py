"""Files of figures open, have their size, and are the same each time."""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from moetool import draw_domains, draw_load
from moetool.errors import UsageError
from moetool.report.figures.files import FORMATS, render_figure
from tests.report.figures.results import HOSTILE, make_results


def draw() -> Figure:
    return draw_load(make_results().balance)


@cache
def render(kind: str) -> bytes:
    return render_figure(draw(), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_result_gives_the_same_bytes(kind: str) -> None:
    assert render_figure(draw(), kind) == render(kind)


def test_a_png_has_the_size_of_the_figure_at_300_dots_per_inch() -> None:
    content = render("png")
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (990, 1080)


def test_a_pdf_is_one_page_with_embedded_fonts_and_without_a_date() -> None:
    content = render("pdf")
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    assert content.count(b"/Type /Page ") == 1
    assert b"/FontFile2" in content
    assert b"CreationDate" not in content


def test_an_svg_parses_and_loads_nothing_from_elsewhere() -> None:
    text = render("svg").decode()
    root = ET.fromstring(text)
    assert root.attrib["width"] == f"{3.3 * 72:g}pt"
    assert not re.search(r"<script|@import|url\((?!#)|<image", text)
    assert "<dc:date>" not in text


def test_hostile_names_are_words_in_an_svg() -> None:
    figure = draw_domains(make_results(domains=HOSTILE).specialization)
    text = render_figure(figure, "svg").decode()
    ET.fromstring(text)
    assert "<script" not in text
    assert "\x1b" not in text


def test_a_map_of_many_cells_is_stored_as_pixels() -> None:
    few = render("svg")
    many = draw_load(make_results(num_layers=94, num_experts=64, top_k=8, first_layer=3).balance)
    text = render_figure(many, "svg")
    assert b"<image" in text
    assert b"<image" not in few
    assert len(text) < 400_000


def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    figure: Any = draw()
    assert figure._repr_svg_().encode() == render("svg")


def test_other_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="written as 'gif'"):
        render_figure(draw(), "gif")
