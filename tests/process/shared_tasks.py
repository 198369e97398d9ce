"""Programs that share tasks with a copy of their process, and write what became of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moetool.process import fork
from moetool.process.fork import SharedTasks

_DEADLINE_S = 120
# More than a pipe holds.
_LARGE_BYTES = 1 << 20


def main() -> None:
    """Write the facts of each way in which tasks end, by its name."""
    facts: dict[str, Callable[[Path], object]] = {
        "both": share,
        "long": answer_at_length,
        "killed": lambda folder: end_copy(folder, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        "failed": lambda folder: end_copy(folder, lambda: 1 / 0),
        "unpicklable": lambda folder: end_copy(folder, lambda: lambda: None),
        "error": fail,
        "other error": fail_at_another,
        "handlers": find_handlers,
        "threads": lambda _: fork_with_thread(),
        "ends ignored": lambda _: fork_without_ends(),
        "one core": lambda _: fork_on_one_core(),
        "block": lambda _: leave_block(),
    }
    found = {}
    for name, find in facts.items():
        folder = Path(sys.argv[1], name)
        folder.mkdir()
        found[name] = find(folder)
    sys.stdout.write(json.dumps(found))


def hold() -> None:
    """Leave a copy at work, with its number in a file, until this process is killed."""
    file = Path(sys.argv[1])

    def work() -> None:
        file.with_suffix(".new").write_text(str(os.getpid()))
        file.with_suffix(".new").rename(file)
        time.sleep(_DEADLINE_S)

    with forking({"work": work}):
        time.sleep(_DEADLINE_S)


@contextmanager
def forking(tasks: Mapping[str, Callable[[], Any]]) -> Iterator[SharedTasks[str, Any]]:
    """Share tasks in a process without other threads, whatever cores it has."""
    with (
        patch.object(fork, "count_cores", return_value=2),
        fork.share_with_copy(tasks, pausing=nullcontext) as shared,
    ):
        yield shared


@contextmanager
def copy_waiting(folder: Path, work: Callable[[], Any]) -> Iterator[SharedTasks[str, Any]]:
    """Have the copy wait in its task, "waits", for this process to begin the other one, "works"."""
    begun, done = folder / "begun", folder / "done"
    parent = os.getpid()

    def wait() -> str:
        begun.touch()
        wait_for(done)
        return whose(parent)

    def begin() -> Any:
        done.touch()
        return work()

    with forking({"waits": wait, "works": begin}) as shared:
        wait_for(begun)
        yield shared


def share(folder: Path) -> list[str]:
    """Take the answer of a copy that waits for this process, and then this process's own."""
    parent = os.getpid()
    with copy_waiting(folder, lambda: whose(parent)) as shared:
        return [shared.take("waits"), shared.take("works")]


def answer_at_length(folder: Path) -> list[object]:
    """Take nothing before the copy has given two answers, the first of which is long."""
    last = folder / "last"

    def end() -> str:
        last.touch()
        return whose(parent)

    parent = os.getpid()
    with forking(
        {"long": lambda: "x" * _LARGE_BYTES, "short": lambda: whose(parent), "end": end}
    ) as shared:
        wait_for(last)
        return [len(shared.take("long")), shared.take("short"), "long" in shared, "end" in shared]


def begin_in_copy(folder: Path, work: Callable[[], Any]) -> Any:
    """Return the answer to a task that the copy begins."""
    begun = folder / "begun"

    def run() -> Any:
        begun.touch()
        return work()

    with forking({"work": run}) as shared:
        wait_for(begun)
        return shared.take("work")


def end_copy(folder: Path, end: Callable[[], Any]) -> str:
    """Have the copy end in the midst of a task."""
    parent = os.getpid()
    answer: str = begin_in_copy(folder, lambda: whose(parent) if os.getpid() == parent else end())
    return answer


def fail(folder: Path) -> str:
    """Share a task that ends with an error wherever it runs."""
    try:
        begin_in_copy(folder, lambda: 1 / 0)
    except ZeroDivisionError:
        return "raised"
    return "lost"


def fail_at_another(folder: Path) -> list[str]:
    """Take the answer of a copy that waits for this process, whose task ends with an error."""
    with copy_waiting(folder, lambda: 1 / 0) as shared:
        found = [shared.take("waits")]
        try:
            shared.take("works")
        except ZeroDivisionError:
            found.append("raised")
        return found


def find_handlers(folder: Path) -> list[bool]:
    """Return whether a signal with a handler, and one that is ignored, would end the copy.

    The last value is whether both would reach it.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    numbers = (signal.SIGTERM, signal.SIGINT)

    def find() -> list[bool]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return [
            *(signal.getsignal(number) is signal.SIG_DFL for number in numbers),
            blocked.isdisjoint(numbers),
        ]

    found: list[bool] = begin_in_copy(folder, find)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return found


def fork_with_thread() -> list[bool]:
    """Return whether there is a copy while a thread runs, and once it can be stopped."""
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()

    @contextmanager
    def stopping() -> Iterator[None]:
        is_over.set()
        yield

    found = []
    for pausing in (nullcontext, stopping):
        with (
            patch.object(fork, "count_cores", return_value=2),
            fork.share_with_copy({"one": lambda: 1}, pausing=pausing) as shared,
        ):
            found.append(shared.has_copy)
            assert shared.take("one") == 1
    return found


def fork_without_ends() -> bool:
    """Return whether there is a copy where ends of processes are ignored."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with forking({"one": lambda: 1}) as shared:
        found = shared.has_copy
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return found


def fork_on_one_core() -> bool:
    """Return whether there is a copy on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    with fork.share_with_copy({"one": lambda: 1}, pausing=nullcontext) as shared:
        found: bool = shared.has_copy
    os.sched_setaffinity(0, cores)
    return found


def leave_block() -> str:
    """Leave a copy that is at work, by an error."""
    try:
        with forking({"work": lambda: time.sleep(_DEADLINE_S)}) as shared:
            assert shared.has_copy
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return "no process is left"
    return "one is left"


def whose(parent: int) -> str:
    """Return whose work this is."""
    return "this" if os.getpid() == parent else "copy"


def wait_for(path: Path) -> None:
    """Return once a path exists."""
    deadline = time.monotonic() + _DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.001)
