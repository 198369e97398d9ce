"""The loop of a process that answers tasks, without knowing what they are.

It reads tasks from stdin and answers each on stdout, both pickled: its parent is the only one that
writes to it. It ends with its parent, also in the middle of a task.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from moetool.process.quiet import silence_process
from moetool.process.worker import TaskError


def answer_tasks(
    answer: Callable[[Any], object], *, prepare: Callable[[], None] | None = None
) -> None:
    """Answer every task on stdin with a value on stdout, or with a `TaskError` if that raises.

    Args:
        answer: Returns the answer to a task.
        prepare: Called once, before the first task and after libraries were silenced.
    """
    # A Ctrl-C is for the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    # Libraries may print.
    os.dup2(2, 1)
    tasks = _receive_tasks()
    silence_process()
    if prepare is not None:
        prepare()
    for task in tasks:
        try:
            found = answer(task)
        except Exception:  # noqa: BLE001
            found = TaskError(traceback.format_exc())
        pickle.dump(found, answers)
        answers.flush()


def _receive_tasks() -> Iterator[Any]:
    """Return the tasks on stdin, without an end: the process ends when stdin does.

    Stdin ends when the parent does, even if the parent was killed.
    """
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                tasks.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    return iter(tasks.get, None)
