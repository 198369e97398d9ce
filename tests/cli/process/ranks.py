"""One of the processes of a run: runs commands one after the other, as torchrun's child."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moetool.errors import OutOfMemoryError
from tests.command import run_main

# The windows that the process has finished when it fails.
_NUM_WHOLE = 2


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        args: The words after `moetool`.
        rank: Process that differs from the others; None if none does.
        more_args: That this one has in addition.
        ends: How it ends in the middle: `fails` or `dies`.
    """

    args: list[str]
    rank: int | None = None
    more_args: list[str] = field(default_factory=list)
    ends: str | None = None


@dataclass(frozen=True)
class Ended:
    """The end of a command in one process."""

    code: int
    stdout: str
    stderr: str


def main() -> None:
    """Run jobs.

    The arguments are a file with a JSON list of jobs, and one to which a line is added for each.
    """
    jobs, results = map(Path, sys.argv[1:])
    for job in (Job(**each) for each in json.loads(jobs.read_text())):
        differs = job.rank == int(os.environ["RANK"])
        args = [*job.args, *(job.more_args if differs else ())]
        with (
            patch("moetool.tracing.processes.processes.LOST_AFTER_S", 3.0),
            _ending(job.ends) if job.ends and differs else nullcontext(),
        ):
            completed = run_main(*args)
        ended = Ended(completed.returncode, completed.stdout, completed.stderr)
        with results.open("a") as file:
            print(json.dumps(asdict(ended)), file=file)


@contextmanager
def _ending(how: str) -> Iterator[None]:
    """End the process, or its command, once it has handed over a few windows."""
    from moetool.trace.writing.share import TraceShare

    commit = TraceShare.commit
    num_whole = 0

    def commit_or_end(sink: TraceShare, encoded: Any) -> None:
        nonlocal num_whole
        commit(sink, encoded)
        num_whole += encoded.is_last
        if num_whole < _NUM_WHOLE:
            return
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OutOfMemoryError("Out of memory here.", hint="Take less.")

    with patch.object(TraceShare, "commit", commit_or_end):
        yield
