"""Processes that work on tasks side by side, each as long as it lives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from typing import Any

from moetool.memory.machine.host_memory import find_available_bytes
from moetool.process.cores import count_cores
from moetool.process.worker import Worker

# What a process that runs models without data takes, with torch.
_PROCESS_BYTES = 2 * 2**30
_PATIENCE_S = 0.1


def choose_num_processes(num_tasks: int) -> int:
    """Return the number of processes for some tasks: one for each core, as far as memory allows."""
    most = min(num_tasks, count_cores())
    available_bytes = find_available_bytes()
    if available_bytes is not None:
        most = min(most, available_bytes // _PROCESS_BYTES)
    return max(1, most)


def keep_torch_to_one_core() -> None:
    """Make torch compute in one thread, because other processes use the other cores."""
    import torch

    torch.set_num_threads(1)


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
    workers: list[Worker] = []
    is_over = threading.Event()

    def work() -> None:
        worker: Worker | None = None
        try:
            while not is_over.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    break
                if worker is not None and not worker.is_running:
                    worker.end()
                    worker = None
                if worker is None:
                    worker = Worker(command)
                    workers.append(worker)
                outcomes.put((index, worker.ask(tasks[index])))
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
                worker.kill()
            for thread in threads:
                thread.join(_PATIENCE_S)
