"""Processes that work on tasks side by side, each as long as it lives."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from moetool.memory.machine.host_memory import find_available_bytes
from moetool.process.cores import count_cores

# What a process that runs models without data takes, with torch.
_PROCESS_BYTES = 2 * 2**30
_PATIENCE_S = 0.1
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


@dataclass
class _Worker:
    """A process, and the file that takes what it writes on stderr; None if the terminal does."""

    process: subprocess.Popen[bytes]
    errors: Any

    def end(self) -> None:
        """End the process, and close what leads to it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def choose_num_processes(num_tasks: int) -> int:
    """Return the number of processes for some tasks: one for each core, as far as memory allows."""
    most = min(num_tasks, count_cores())
    available_bytes = find_available_bytes()
    if available_bytes is not None:
        most = min(most, available_bytes // _PROCESS_BYTES)
    return max(1, most)


def work_in_processes(
    tasks: Sequence[object], command: Sequence[str], *, num_processes: int
) -> Generator[tuple[int, Any], None, None]:
    """Yield the index of each task and its answer, as they come; None if its process was killed.

    All processes are ended when this generator is closed, or raises.

    Args:
        tasks: What is pickled to a process, one after another.
        command: Starts a process that answers every pickled task on stdin with one pickled value.
        num_processes: How many work side by side.

    Raises:
        WorkerError: A process answered with a `TaskError`, or ended by itself without an answer.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(tasks)):
        waiting.put(index)
    outcomes: queue.SimpleQueue[tuple[int, Any] | BaseException] = queue.SimpleQueue()
    workers: list[_Worker] = []
    is_over = threading.Event()

    def work() -> None:
        worker: _Worker | None = None
        try:
            while not is_over.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    break
                if worker is not None and worker.process.poll() is not None:
                    worker.end()
                    worker = None
                if worker is None:
                    worker = _start(command)
                    workers.append(worker)
                outcomes.put((index, _ask(worker, tasks[index])))
        except BaseException as error:  # noqa: BLE001
            # The generator raises it; without any outcome it would wait forever.
            outcomes.put(error)
        finally:
            if worker is not None:
                worker.end()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_processes)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        is_over.set()
        # A thread may only just have started a process.
        while any(thread.is_alive() for thread in threads):
            for worker in workers:
                worker.process.kill()
            for thread in threads:
                thread.join(_PATIENCE_S)


def _start(command: Sequence[str]) -> _Worker:
    # A Ctrl-C on the terminal reaches its whole group.
    own_group: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # It imports what this process would, and nothing that merely lies in the current folder.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(_is_text, sys.path))),
    }
    with ExitStack() as opened:
        errors = None
        if not os.environ.get("MOETOOL_DEBUG"):
            errors = opened.enter_context(tempfile.TemporaryFile())
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            **own_group,
        )
        # From here on, ending the process closes the file.
        opened.pop_all()
    return _Worker(process, errors)


def _is_text(entry: object) -> bool:
    # Import hooks may put other objects on the path.
    return isinstance(entry, str)


def _ask(worker: _Worker, task: object) -> Any:
    """Return a process's answer to a task; None if it was killed.

    Raises:
        WorkerError: It answered with a `TaskError`, or ended by itself without an answer.
    """
    process = worker.process
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
            worker.end()
            return None
        raise WorkerError(
            f"A process that works on tasks ended with exit code {exit_code}.{_read_end(worker)}"
        ) from None
    if isinstance(answer, TaskError):
        raise WorkerError(f"A process that works on tasks failed.\n{answer.description}")
    return answer


def _read_end(worker: _Worker) -> str:
    """Return the end of what a process wrote on stderr, on lines below; empty if it wrote nothing."""
    if worker.errors is None:
        return ""
    num_bytes = worker.errors.seek(0, os.SEEK_END)
    worker.errors.seek(max(0, num_bytes - _LAST_BYTES))
    text = worker.errors.read().decode(errors="replace").strip()
    return f"\n{text}" if text else ""
