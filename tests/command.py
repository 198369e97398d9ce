"""The `moetool` command for tests: run in this process, or as its own process."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import typer.main

from moetool.cli.main import main

REPOSITORY = Path(__file__).parent.parent

Completed = subprocess.CompletedProcess[str]
RunMoetool = Callable[..., Completed]

# Output as in a script: without colours, and no wider than a terminal.
_PLAIN = {"NO_COLOR": "1", "COLUMNS": "80"}

# Reading the options of all commands from their signatures takes longer than most refusals.
get_command_once = cache(typer.main.get_command)


def run_main(
    *args: str | Path,
    stdin: str | bytes | TextIO = "",
    cwd: Path = REPOSITORY,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> Completed:
    """Run `moetool ARGS` in this process.

    A process that imports torch and transformers spends six seconds on it. What a command changes
    in its process is put back.

    Args:
        args: The words after `moetool`.
        stdin: Its input.
        cwd: The folder it runs in.
        stdout: Where its output goes, if not into what is returned.
        stderr: Where its messages go, if not into what is returned.
    """
    argv = ["moetool", *map(str, args)]
    given: TextIO = (
        io.TextIOWrapper(io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin))
        if isinstance(stdin, str | bytes)
        else stdin
    )
    out, err = io.BytesIO(), io.BytesIO()
    out_text = stdout or io.TextIOWrapper(out, encoding="utf-8")
    err_text = stderr or io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace")
    code: object = None
    with (
        patch.object(sys, "argv", argv),
        patch.object(sys, "stdin", given),
        patch.object(sys, "stdout", out_text),
        patch.object(sys, "stderr", err_text),
        patch.object(sys, "unraisablehook", sys.unraisablehook),
        patch.object(typer.main, "get_command", get_command_once),
        patch.dict(os.environ, _PLAIN),
        contextlib.chdir(cwd),
        warnings.catch_warnings(),
        _logging_to(err_text),
        _interrupts_kept(),
    ):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        out_text.flush()
        err_text.flush()
    assert isinstance(code, int)
    return Completed(argv, code, out.getvalue().decode(), err.getvalue().decode())


def run_process(
    *args: str | Path, stdin: str | bytes = "", cwd: Path = REPOSITORY, **environment: str
) -> Completed:
    """Run `moetool ARGS` as its own process, as a user does in a script."""
    command = [sys.executable, "-m", "moetool", *map(str, args)]
    completed = subprocess.run(
        command,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **_PLAIN, **environment},
        check=False,
    )
    streams = completed.stdout.decode(), completed.stderr.decode()
    return Completed(command, completed.returncode, *streams)


@contextlib.contextmanager
def _logging_to(stream: TextIO) -> Iterator[None]:
    """Let what libraries log to stderr go to a stream; they keep the one they were imported with."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if type(handler) is logging.StreamHandler
    }
    before = {handler: handler.setStream(stream) for handler in handlers}
    try:
        yield
    finally:
        for handler, old in before.items():
            if old is not None:
                handler.setStream(old)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Put back who handles a Ctrl-C and a SIGTERM: in a command that is over nobody does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
