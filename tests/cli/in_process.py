"""The whole command in this process: a tenth of the time of one of its own."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from moetool.cli.main import main
from tests.conftest import Completed


def run_main(*args: str | Path, stdin: bytes = b"") -> Completed:
    """Run `moetool ARGS`, as `run_moetool` does."""
    argv = ["moetool", *map(str, args)]
    out, err = io.BytesIO(), io.BytesIO()
    stdout = io.TextIOWrapper(out, encoding="utf-8")
    stderr = io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace")
    code: object = None
    with (
        patch.object(sys, "argv", argv),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        patch.object(sys, "stdout", stdout),
        patch.object(sys, "stderr", stderr),
    ):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
    stdout.flush()
    stderr.flush()
    assert isinstance(code, int)
    return Completed(argv, code, out.getvalue().decode(), err.getvalue().decode())


def find_steering(text: str) -> Sequence[str]:
    """Return the characters of an output that would steer a terminal."""
    return sorted({character for character in text if not character.isprintable()} - {"\n"})
