"""Draw the pictures in the README: a command on a terminal, and the errors of estimates.

    python tools/draw_pictures.py           write docs/images/*.svg
    python tools/draw_pictures.py --check   only say which are stale; exit 1 if any is

A picture is stale if its words are: other versions of rich may draw the same words differently.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from moetool.report.renderer import View
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style, style_words
from moetool.report.text.tables import Bar, make_table

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "docs" / "images"
PEERS = REPOSITORY / "benchmarks" / "memory" / "measured" / "memory_peers.jsonl"
COMMAND = "moetool memory-estimate mixtral-8x7b --gpu rtx-4090 --batch-size 8"

_WIDTH = 80
_LINES_SHOWN = 27
_SVG = "{http://www.w3.org/2000/svg}"
# Fonts are taken from the reader's machine: a page must not load anything from elsewhere.
_FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.S)
_THEME = TerminalTheme(
    (24, 26, 31),
    (214, 218, 224),
    [
        (60, 64, 72),
        (240, 113, 120),
        (139, 201, 121),
        (233, 196, 106),
        (110, 170, 240),
        (198, 145, 230),
        (98, 196, 196),
        (214, 218, 224),
    ],
)


@dataclass(frozen=True)
class Errors:
    """Errors of one tool's estimates of peak memory, as shares of what was measured."""

    mean: float
    worst: float
    num_runs: int


def draw_pictures(run: Callable[[str], str] | None = None) -> dict[str, str]:
    """Return the pictures as SVG, by the names of their files.

    Args:
        run: Returns what a command prints; by default, it is run on its own.
    """
    shown = "\n".join((run or _run)(COMMAND).splitlines()[:_LINES_SHOWN])
    return {
        "memory-estimate.svg": _draw(f"$ {COMMAND}\n{shown}", title="moetool"),
        "accuracy.svg": _draw(_chart(), title="estimated against measured peak memory"),
    }


def read_words(svg: str) -> str:
    """Return the words of a picture in their order, without the spaces between them."""
    drawn = "".join(element.text or "" for element in ET.fromstring(svg).iter(f"{_SVG}text"))
    return "".join(drawn.split())


def read_errors() -> Mapping[str, Errors]:
    """Return the errors of each tool over the runs that it answers, the smallest first."""
    shares: dict[str, list[float]] = defaultdict(list)
    for line in PEERS.read_text(encoding="utf-8").splitlines():
        for answer in json.loads(line)["answers"]:
            if answer["share_off"] is not None:
                shares[answer["tool"]].append(abs(answer["share_off"]))
    errors = {
        tool: Errors(mean=sum(found) / len(found), worst=max(found), num_runs=len(found))
        for tool, found in shares.items()
    }
    return dict(sorted(errors.items(), key=lambda item: item[1].mean))


def _chart() -> str:
    errors = read_errors()
    largest = max(each.worst for each in errors.values())
    rows = [
        (
            style_words(tool, Style.STRONG) if tool == "moetool" else tool,
            f"{each.mean:.3%}",
            f"{each.worst:.3%}",
            Bar(each.worst / largest),
            f"{each.num_runs}",
        )
        for tool, each in errors.items()
    ]
    headers = ("tool", "mean error", "worst", "", "runs answered")
    table = make_table(headers, rows, right=(1, 2, 4))
    return render_page([[table]], View(width=_WIDTH, has_color=True))


def _run(command: str) -> str:
    """Return what a command prints with colour."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    completed = subprocess.run(
        command.split(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**environment, "FORCE_COLOR": "1", "TERM": "xterm", "PATH": path},
    )
    return completed.stdout


def _draw(text: str, *, title: str) -> str:
    console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_terminal=True)
    console.print(Text.from_ansi(text), crop=False)
    svg = console.export_svg(title=title, theme=_THEME, unique_id="moetool")
    return _FONT_FACES.sub("", svg)


def _find_stale(pictures: Mapping[str, str]) -> Iterator[str]:
    for name, svg in pictures.items():
        path = IMAGES / name
        if not path.exists() or read_words(path.read_text(encoding="utf-8")) != read_words(svg):
            yield name


def main() -> None:
    """Draw or check every picture."""
    pictures = draw_pictures()
    stale = list(_find_stale(pictures))
    if "--check" not in sys.argv:
        for name, svg in pictures.items():
            (IMAGES / name).write_text(svg, encoding="utf-8")
    print("stale: " + ", ".join(stale) if stale else "up to date")
    sys.exit(bool(stale and "--check" in sys.argv))


if __name__ == "__main__":
    main()
