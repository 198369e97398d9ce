"""Commands in their own processes, which tests break off, and what they wait for before that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.bad_input.refusals import Refusal
from tests.command import REPOSITORY, Completed
from tests.forked import Forked, Forks

# Only for a process that hangs: on a busy machine all takes ten times as long.
DEADLINE_S = 600

INTERRUPTED = Refusal(130, error="Interrupted", hint="same command")

Process = subprocess.Popen[bytes] | Forked

_COMMAND = "from moetool.__main__ import main\nimport sys\nsys.argv[0] = 'moetool'\nmain()\n"


def users_environment() -> dict[str, str]:
    """Return this environment without what is set to have commands quiet and unbuffered."""
    # Tiny models gain nothing from a second thread, and lose much where it has to share a core.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("PYTHONUNBUFFERED", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        environment.pop(name, None)
    return environment


@contextmanager
def started_moetool(
    *args: str | Path, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `moetool` as users do, with pipes at its ends, and kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "moetool", *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env=users_environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def forked_moetool(
    forks: Forks,
    *args: str | Path,
    setting: str = "",
    stdin: int | None = None,
    stdout: int | None = None,
) -> Forked:
    """Start `moetool` in a process that has imported its libraries, after a setting in Python."""
    return forks.start(
        f"{setting}\n{_COMMAND}", *args, environment=users_environment(), stdin=stdin, stdout=stdout
    )


def finish(process: Process) -> Completed:
    """Wait for the end of a process."""
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode is not None
    return Completed(process.args, process.returncode, (stdout or b"").decode(), stderr.decode())


def wait_until(is_there: Callable[[], bool], process: Process, what: str) -> None:
    """Return once something is there, or fail as soon as the process has ended without it."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_there():
        has_ended = process.poll() is not None
        # It may have come just before the end.
        assert is_there() or not has_ended, finish(process).stderr
        assert time.monotonic() < deadline, f"{what} never appeared"
        time.sleep(0.01)


def wait_for(path: Path, process: Process) -> None:
    """Return once a path exists, or fail as soon as the process has ended without it."""
    wait_until(path.exists, process, str(path))
