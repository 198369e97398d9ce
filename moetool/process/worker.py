"""Another process of moetool's, which answers tasks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

# A process that has closed its end of a pipe ends at once.
_ENDING_S = 10
# The end of what a process wrote on stderr.
_LAST_BYTES = 4_000


@dataclass(frozen=True)
class TaskError:
    """A process's answer to a task that it failed at.

    Attributes:
        description: The error, with its traceback.
    """

    description: str


class WorkerError(RuntimeError):
    """A process failed, for a reason other than a lack of memory."""


class Worker:
    """A process that answers every pickled task on stdin with one pickled value on stdout.

    Args:
        command: Starts the process.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # A Ctrl-C on the terminal reaches its whole group.
        own_group: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # It imports what this process would, and nothing that merely lies in the current folder.
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(_is_text, sys.path))),
        }
        # The file that takes what it writes on stderr; None if the terminal does.
        self._errors: Any = None
        with ExitStack() as opened:
            if not os.environ.get("MOETOOL_DEBUG"):
                self._errors = opened.enter_context(tempfile.TemporaryFile())
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                **own_group,
            )
            # From here on, ending the process closes the file.
            opened.pop_all()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask(self, task: object) -> Any:
        """Return its answer to a task; None if it was killed.

        Raises:
            WorkerError: It answered with a `TaskError`, or ended by itself without an answer.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        pickled = pickle.dumps(task)
        try:
            process.stdin.write(pickled)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_S)
            exit_code = process.poll()
            if exit_code is None:
                raise WorkerError("A process wrote something other than an answer.") from None
            if exit_code < 0:
                self.end()
                return None
            raise WorkerError(
                f"A process that works on tasks ended with exit code {exit_code}.{self._read_end()}"
            ) from None
        if isinstance(answer, TaskError):
            raise WorkerError(f"A process that works on tasks failed.\n{answer.description}")
        return answer

    def kill(self) -> None:
        """Kill it. Whoever waits for its answer stops waiting."""
        self._process.kill()

    def end(self) -> None:
        """End it, and close what leads to it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _read_end(self) -> str:
        """Return the end of what it wrote on stderr, on lines below; empty if it wrote nothing."""
        if self._errors is None:
            return ""
        num_bytes = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, num_bytes - _LAST_BYTES))
        text = self._errors.read().decode(errors="replace").strip()
        return f"\n{text}" if text else ""


def _is_text(entry: object) -> bool:
    # Import hooks may put other objects on the path.
    return isinstance(entry, str)
