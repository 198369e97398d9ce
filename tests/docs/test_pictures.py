"""The README's pictures show what the commands print, and what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moetool.cli.commands.figures import plot as plots
from tests.command import run_main
from tools.draw_figures import FIGURES, PAGE, read_commands
from tools.draw_figures import read_words as read_figure_words
from tools.draw_pictures import IMAGES, draw_pictures, read_errors, read_words
from tools.refresh_docs import read_blocks

# Names of formats and of tools, not addresses that are loaded.
_NAMES = {
    *("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "https://www.textualize.io"),
    *("http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd", "http://purl.org/dc/elements/1.1/"),
    *("http://creativecommons.org/ns#", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"),
    "http://purl.org/dc/dcmitype/StillImage",
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    """The pictures of what the README shows, which is compared with the command's output elsewhere."""

    def read_output(command: str) -> str:
        (shown,) = (
            block.output
            for block in read_blocks()
            if block.command.startswith(f"$ {command} | head")
        )
        return shown

    return draw_pictures(read_output)


def test_the_pictures_are_those_that_would_be_drawn_now(pictures: dict[str, str]) -> None:
    found = {
        path.name: read_words(path.read_text(encoding="utf-8")) for path in IMAGES.glob("*.svg")
    }
    assert found == {name: read_words(svg) for name, svg in pictures.items()}
    assert "mixtral-8x7b" in found["memory-estimate.svg"]


def test_a_picture_loads_nothing_from_elsewhere() -> None:
    for path in IMAGES.rglob("*.svg"):
        text = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"')<]+", text))
        assert addresses <= _NAMES
        assert not re.search(r"url\((?!#)|<script|<image|@import", text)


def test_every_figure_has_its_picture_and_its_command() -> None:
    commands = read_commands()
    assert {f"{name}.svg" for name, *_ in plots.COMMANDS} == set(commands)
    assert {path.name for path in FIGURES.iterdir()} == set(commands)
    for name, line in commands.items():
        assert line.startswith(f"plot {name.removesuffix('.svg')} ")
        assert f"images/figures/{name}" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["load.svg", "confidence.svg"])
def test_a_figure_has_the_words_that_it_would_have_now(
    name: str, demo_trace: Path, tmp_path: Path
) -> None:
    words = read_commands()[name].replace("trace.parquet", str(demo_trace)).split()
    completed = run_main(*words, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    drawn, shown = (folder / name for folder in (tmp_path, FIGURES))
    assert read_figure_words(drawn.read_text()) == read_figure_words(shown.read_text())
    assert "random router: all experts" in read_figure_words((FIGURES / "load.svg").read_text())


def test_the_chart_is_of_the_runs_that_every_tool_was_asked_about() -> None:
    errors = read_errors()
    assert next(iter(errors)) == "moetool"
    assert max(each.num_runs for each in errors.values()) == errors["moetool"].num_runs
    assert all(0 <= each.mean <= each.worst for each in errors.values())
