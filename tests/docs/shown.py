"""Run the documentation's command lines, with `moetool` in this process."""

from __future__ import annotations

import io
import shlex
import subprocess
from pathlib import Path
from typing import TextIO

from tests.command import run_main
from tools.refresh_docs import SHOWN_CODES, find_command, make_environment


class _Screen(io.BytesIO):
    """The bytes that a terminal gets. The streams that write to it leave it open."""

    def close(self) -> None:
        """Do nothing: a library that is imported by a command keeps its streams for messages."""


def run_shown_here(line: str, *, folder: Path) -> str:
    """Return the output of a `$ command` line on a terminal's two streams, as `run_shown` does.

    `moetool` runs in this process, which saves importing torch. If another program reads its
    output, it writes into a real pipe.
    """
    screen = _Screen()
    command = find_command(line)
    for step in command.split(" && ") if command else ():
        first, _, reader = step.partition(" | ")
        first, _, target = first.partition(" > ")
        # Both streams go to the same screen.
        name, *words = shlex.split(first.removesuffix(" 2>&1"))
        if name != "moetool":
            with _started(step, folder=folder) as process:
                screen.write(_finish(process))
        elif target:
            with (folder / target).open("w", encoding="utf-8") as file:
                _run_moetool(words, screen, folder=folder, stdout=file)
        elif not reader:
            out = io.TextIOWrapper(screen, encoding="utf-8")
            _run_moetool(words, screen, folder=folder, stdout=out)
        else:
            with _started(reader, folder=folder) as process:
                assert isinstance(process.stdin, io.TextIOWrapper)
                _run_moetool(words, screen, folder=folder, stdout=process.stdin)
                screen.write(_finish(process))
    return screen.getvalue().decode()


def _run_moetool(words: list[str], screen: _Screen, *, folder: Path, stdout: TextIO) -> None:
    # Messages appear at once, and output when there is enough of it or the command ends.
    err = io.TextIOWrapper(screen, encoding="utf-8", write_through=True)
    completed = run_main(*words, cwd=folder, stdout=stdout, stderr=err)
    assert completed.returncode in SHOWN_CODES, screen.getvalue().decode()


def _started(command: str, *, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=make_environment(),
    )


def _finish(process: subprocess.Popen[str]) -> bytes:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output.encode()
