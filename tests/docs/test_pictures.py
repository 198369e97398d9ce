"""The README's pictures show what the commands print, and what was measured."""

from __future__ import annotations

import re

import pytest

from tests.command import run_main
from tools.draw_pictures import IMAGES, draw_pictures, read_errors, read_words


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    return draw_pictures(lambda command: run_main(*command.split()[1:]).stdout)


def test_the_pictures_are_those_that_would_be_drawn_now(pictures: dict[str, str]) -> None:
    found = {path.name: read_words(path.read_text(encoding="utf-8")) for path in IMAGES.iterdir()}
    assert found == {name: read_words(svg) for name, svg in pictures.items()}
    assert "mixtral-8x7b" in found["memory-estimate.svg"]


def test_a_picture_loads_nothing_from_elsewhere() -> None:
    for path in IMAGES.iterdir():
        text = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"')<]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
        assert not re.search(r"url\((?!#)|<script|<image|@import", text)


def test_the_chart_is_of_the_runs_that_every_tool_was_asked_about() -> None:
    errors = read_errors()
    assert next(iter(errors)) == "moetool"
    assert max(each.num_runs for each in errors.values()) == errors["moetool"].num_runs
    assert all(0 <= each.mean <= each.worst for each in errors.values())
