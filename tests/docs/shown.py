"""Run the documentation's command lines, with `moetool` in this process."""

from __future__ import annotations

import contextlib
import io
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from functools import cache
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import torch

from moetool.checkpoint.reference import ModelReference
from moetool.memory.fitting import catalogue_fits
from moetool.memory.fitting.model_fit import ModelFit
from moetool.memory.fitting.worker import FitTask, answer
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario
from moetool.memory.sweeps import run
from moetool.memory.sweeps.worker import SweepOptions
from moetool.process.fork import Pausing
from tests.command import run_main
from tools.refresh_docs import SHOWN_CODES, find_command, make_environment

# Of all models, before a command's are kept.
_estimate = run._estimate_here


class _Screen(io.BytesIO):
    """The bytes that a terminal gets. The streams that write to it leave it open."""

    def close(self) -> None:
        """Do nothing: a library that is imported by a command keeps its streams for messages."""


def run_shown_here(line: str, *, folder: Path) -> str:
    """Return the output of a `$ command` line on a terminal's two streams, as `run_shown` does.

    `moetool` and the tools of this repository run in this process, which saves importing torch. If
    another program reads its output, `moetool` writes into a real pipe.
    """
    screen = _Screen()
    command = find_command(line)
    for step in command.split(" && ") if command else ():
        first, _, reader = step.partition(" | ")
        first, _, target = first.partition(" > ")
        # Both streams go to the same screen.
        name, *words = shlex.split(first.removesuffix(" 2>&1"))
        if name == "python" and words[0].startswith("tools/"):
            _run_tool(words, folder=folder)
        elif name != "moetool":
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
    with (
        patch.object(catalogue_fits, "work_in_processes", work_here),
        patch.object(run, "_estimate_here", _estimate_once),
    ):
        completed = run_main(*words, cwd=folder, stdout=stdout, stderr=err)
    assert completed.returncode in SHOWN_CODES, screen.getvalue().decode()


def _estimate_once(
    model: ModelReference,
    scenarios: Sequence[Scenario],
    options: SweepOptions,
    on_progress: Callable[[str], None],
    pausing: Pausing | None,
) -> list[Estimate]:
    """Return the estimates of a model, which one page may show as a table and as CSV."""
    del on_progress, pausing
    return _keep_estimates(model, tuple(scenarios), options)


@cache
def _keep_estimates(
    model: ModelReference, scenarios: tuple[Scenario, ...], options: SweepOptions
) -> list[Estimate]:
    return _estimate(model, scenarios, options, lambda _: None, None)


def work_here(
    tasks: Sequence[FitTask], command: Sequence[str], *, num_processes: int
) -> Generator[tuple[int, ModelFit], None, None]:
    """Answer tasks in this process, as `work_in_processes` has others answer them."""
    del command, num_processes
    yield from enumerate(map(answer, tasks))


def _run_tool(words: list[str], *, folder: Path) -> None:
    """Run a tool that prints nothing."""
    printed = io.StringIO()
    with (
        patch.object(sys, "argv", words),
        torch.random.fork_rng(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        runpy.run_path(words[0], run_name="__main__")
    assert not printed.getvalue()


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
