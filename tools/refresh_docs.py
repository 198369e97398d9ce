"""Run the commands in the documentation's console blocks and put their real output below them.

    python tools/refresh_docs.py           rewrite the blocks
    python tools/refresh_docs.py --check   only say which are stale; exit 1 if any is

A block's first line is `$ command`; later blocks find what earlier ones wrote, the documents taken
in order. Of a command that installs first, only what follows the
installation is run; `pytest` is not run, and shows nothing. Lines with timings are
written, but not compared.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "docs/first-ten-minutes.md",
    "docs/questions/report.md",
    "docs/questions/balance.md",
    "docs/questions/specialize.md",
    "docs/questions/coactivation.md",
    "docs/questions/tokens.md",
    "docs/questions/select.md",
    "docs/questions/place.md",
    "docs/questions/compare.md",
    "docs/questions/cache.md",
    "docs/figures.md",
    "docs/traces/route-trace.md",
    "docs/traces/validate.md",
    "docs/traces/merge.md",
    "docs/traces/import.md",
    "docs/models/inspect.md",
    "docs/models/numbers-people-quote.md",
    "docs/models/memory-estimate.md",
    "docs/models/gguf.md",
    "docs/models/fits.md",
    "docs/models/quantize.md",
)

# Exit codes of blocks: some show wrong usage, or an input that can't be used.
SHOWN_CODES = (0, 2, 3)

_BLOCK = re.compile(r"(?<=^```console\n)(?P<command>\$ .*\n)(?P<output>(?:.*\n)*?)(?=^```$)", re.M)
_TIMING = re.compile(r"^took .* s\b.*$", re.M)
_WRITTEN = re.compile(r"(?:-o|--output|--save-text) (\S+)")


@dataclass(frozen=True)
class Block:
    """A console block: a `$ command` line, and the output shown below it."""

    document: str
    command: str
    output: str

    @property
    def written(self) -> list[str]:
        """The files and folders that the command writes."""
        return _WRITTEN.findall(self.command)


def read_blocks() -> list[Block]:
    """Return every document's blocks, in the order in which they are run."""
    return [
        Block(name, found["command"].strip(), found["output"])
        for name in DOCUMENTS
        for found in _BLOCK.finditer((REPOSITORY / name).read_text(encoding="utf-8"))
    ]


def refresh(text: str, *, folder: Path) -> str:
    """Return a document with the real output of its commands, run in a folder, one by one."""
    return _BLOCK.sub(
        lambda block: block["command"] + run_shown(block["command"].strip(), folder=folder), text
    )


def without_timings(text: str) -> str:
    """Return a document without the lines that differ from run to run."""
    return _TIMING.sub("", text)


def find_command(line: str) -> str:
    """Return the command of a `$ command` line that is run; empty if there is none."""
    command = line.removeprefix("$ ")
    if command.startswith("pip install"):
        command = command.partition("&&")[2].strip()
    return "" if command == "pytest" else command


def run_shown(line: str, *, folder: Path) -> str:
    """Return what a `$ command` line prints on a terminal's two streams."""
    command = find_command(line)
    completed = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=make_environment(),
    )
    assert completed.returncode in SHOWN_CODES, completed.stdout
    return completed.stdout


def make_environment() -> dict[str, str]:
    """Return the variables of a terminal of 80 columns, without colours, in this environment."""
    return {
        **os.environ,
        "NO_COLOR": "1",
        "COLUMNS": "80",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def make_workplace(folder: Path) -> Path:
    """Return a folder that looks like the repository to the commands, for their output."""
    for name in ("sample_prompts", "docs", "tools", "moetool"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def main() -> None:
    """Refresh or check every document."""
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        workplace = make_workplace(Path(folder))
        for name in DOCUMENTS:
            path = REPOSITORY / name
            old = path.read_text(encoding="utf-8")
            new = refresh(old, folder=workplace)
            if without_timings(old) != without_timings(new):
                stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print("stale: " + ", ".join(stale) if stale else "up to date")
    sys.exit(bool(stale and "--check" in sys.argv))


if __name__ == "__main__":
    main()
