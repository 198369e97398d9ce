"""Processes that work on tasks side by side, each as long as it lives."""

from __future__ import annotations

import os
import pickle
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# What a process that runs models without data takes, with torch.
_PROCESS_BYTES = 2 * 2**30
_PATIENCE_S = 0.1
# Linux counts what it could drop, such as cached files, as available.
_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable: +(?P<kib>[0-9]+) kB$", re.M)


def choose_num_processes(num_tasks: int) -> int:
    """Return the number of processes for some tasks: one for each core, as far as memory allows."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = min(num_tasks, num_cores or 1)
    available_bytes = _find_available_bytes()
    if available_bytes is not None:
        most = min(most, available_bytes // _PROCESS_BYTES)
    return max(1, most)


def _find_available_bytes() -> int | None:
    """Return the memory that programs can take without swapping; None if the system doesn't say."""
    try:
        found = _AVAILABLE.search(_MEMINFO.read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else int(found["kib"]) * 1024


def work_in_processes(
    tasks: Sequence[object], command: Sequence[str], *, num_processes: int
) -> Generator[tuple[int, Any], None, None]:
    """Yield the index of each task and its answer, as they come; None if its process ended first.

    All processes are ended when this generator is closed, or raises.

    Args:
        tasks: What is pickled to a process, one after another.
        command: Starts a process that answers every pickled task on stdin with one pickled value.
        num_processes: How many work side by side.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(tasks)):
        waiting.put(index)
    answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    processes: list[subprocess.Popen[bytes]] = []
    is_over = threading.Event()

    def work() -> None:
        process: subprocess.Popen[bytes] | None = None
        while not is_over.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                break
            if process is not None and process.poll() is not None:
                _end(process)
                process = None
            if process is None:
                process = _start(command)
                processes.append(process)
            answers.put((index, _ask(process, tasks[index])))
        if process is not None:
            _end(process)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_processes)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            yield answers.get()
    finally:
        is_over.set()
        # A thread may only just have started a process.
        while any(thread.is_alive() for thread in threads):
            for process in processes:
                process.kill()
            for thread in threads:
                thread.join(_PATIENCE_S)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # A Ctrl-C on the terminal reaches its whole group.
    own_group: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "critical"}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("MOETOOL_DEBUG") else subprocess.DEVNULL,
        env=environment,
        **own_group,
    )
    return process


def _ask(process: subprocess.Popen[bytes], task: object) -> Any:
    """Return a process's answer to a task; None if it ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(task, process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        _end(process)
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and close what leads to it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
