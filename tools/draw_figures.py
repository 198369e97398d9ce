"""Draw the figures in docs/figures.md with the commands that it shows.

    python tools/draw_figures.py           write docs/images/figures/*.svg
    python tools/draw_figures.py --check   only say which are stale; exit 1 if any is

A figure is stale if its words are: other versions of matplotlib may draw the same figure differently.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "figures.md"
FIGURES = REPOSITORY / "docs" / "images" / "figures"

_RECORD = f"route-trace demo --prompts {REPOSITORY / 'sample_prompts'} -o trace.parquet"
_COMMAND = re.compile(r"^(?:\$ )?moetool (plot \w+ .*-o (\w+\.svg))$", re.M)
# matplotlib names each text in a comment, because letters are drawn as shapes.
_WORDS = re.compile(r"<!-- (.*?) -->")


def read_commands() -> Mapping[str, str]:
    """Return the commands of the page that draw figures, by the name of the file."""
    return {name: line for line, name in _COMMAND.findall(PAGE.read_text(encoding="utf-8"))}


def read_words(svg: str) -> list[str]:
    """Return the words of a figure, in the order in which they are drawn."""
    return _WORDS.findall(svg)


def draw_figures(folder: Path) -> dict[str, str]:
    """Run the commands of the page in a folder, and return the figures by their names."""
    _run(_RECORD, folder)
    drawn = {}
    for name, line in read_commands().items():
        _run(f"{line} --force", folder)
        drawn[name] = (folder / name).read_text(encoding="utf-8")
    return drawn


def _run(line: str, folder: Path) -> None:
    command = [sys.executable, "-m", "moetool", *shlex.split(line), "-q"]
    subprocess.run(command, cwd=folder, check=True)


def main() -> None:
    """Draw or check every figure."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_figures(Path(folder))
    stale = []
    for name, svg in drawn.items():
        path = FIGURES / name
        if not path.exists() or read_words(path.read_text(encoding="utf-8")) != read_words(svg):
            stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(svg, encoding="utf-8")
    print("stale: " + ", ".join(stale) if stale else "up to date")
    sys.exit(bool(stale and "--check" in sys.argv))


if __name__ == "__main__":
    main()
