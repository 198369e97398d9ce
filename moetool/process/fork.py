"""Tasks that this process shares with a copy of itself."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, NoReturn, TypeVar

from moetool.process.cores import count_cores

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")

# Stops the threads that the program itself has started, such as one that shows progress, for a block.
Pausing = Callable[[], AbstractContextManager[None]]

_THREADS = Path("/proc/self/task")
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Threads that were stopped take a moment to end.
_ENDING_S = 0.1
_PAUSE_S = 0.001
# The option of Linux's prctl by which a process ends with its parent.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Channels:
    """The connections of two processes that share tasks.

    Attributes:
        claims: Yields the position of each task as a byte, to whichever process reads it first.
        notices: Yields a byte for each answer that the copy has written.
        to_notices: The copy's end of these.
        answers: Yields the copy's answers.
        to_answers: The copy's end of these, a file, to which it writes without waiting.
    """

    claims: BinaryIO
    notices: BinaryIO
    to_notices: BinaryIO
    answers: BinaryIO
    to_answers: BinaryIO

    def claim(self) -> int | None:
        """Return the position of the next task that nobody works on; None if there is none left."""
        claimed = self.claims.read(1)
        return claimed[0] if claimed else None

    def is_answered(self) -> bool:
        """Return whether the copy has written an answer, or has ended."""
        notices = select.poll()
        notices.register(self.notices, select.POLLIN)
        return bool(notices.poll(0))


class SharedTasks(Generic[Key, Answer]):
    """Tasks, of which each is worked on by this process or by its copy.

    Args:
        tasks: Return the answers.
        channels: Connect this process with its copy; None if there is none.
    """

    def __init__(
        self, tasks: Mapping[Key, Callable[[], Answer]], channels: _Channels | None
    ) -> None:
        self._tasks = dict(tasks)
        self._keys = list(tasks)
        self._channels = channels
        self._answers: dict[Key, Answer] = {}
        # Tasks with errors, which are raised where their answers are taken.
        self._failed: set[Key] = set()

    @property
    def has_copy(self) -> bool:
        """Whether there is a copy of this process."""
        return self._channels is not None

    def __contains__(self, key: object) -> bool:
        """Return whether a task has yet to be taken."""
        return key in self._tasks

    def take(self, key: Key) -> Answer:
        """Return the answer to a task, which is then forgotten.

        While the copy works on it, this process works on others.

        Raises:
            KeyError: The task is unknown, or its answer was taken before.
        """
        while self._channels is not None and key not in (*self._answers, *self._failed):
            self._work_or_wait(self._channels)
        task = self._tasks.pop(key)
        return self._answers.pop(key) if key in self._answers else task()

    def _work_or_wait(self, channels: _Channels) -> None:
        """Add the next answer of this process or of its copy, unless that has ended."""
        claimed = None if channels.is_answered() else channels.claim()
        if claimed is not None:
            key = self._keys[claimed]
            try:
                self._answers[key] = self._tasks[key]()
            except Exception:  # noqa: BLE001 - it is raised again
                self._failed.add(key)
        elif channels.notices.read(1):
            index, answer = pickle.load(channels.answers)
            self._answers[self._keys[index]] = answer
        else:
            # It leaves to this process whatever it was working on.
            self._channels = None


def avoid_threads() -> None:
    """Have numpy start no threads, which would rule out forks, unless it has been imported."""
    if sys.platform == "linux" and "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@contextmanager
def share_with_copy(
    tasks: Mapping[Key, Callable[[], Answer]],
    *,
    pausing: Pausing,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[SharedTasks[Key, Answer]]:
    """Share tasks with a copy of this process during the block.

    No copy is made unless this is Linux and there is a second core. Nor is one made if ends of
    processes are ignored, or if this process has other threads: locks that they hold would stay
    locked in the copy. It ends with the block, or with this process.

    Args:
        tasks: Return answers that can be pickled. The copy ends with an error of a task.
        pausing: Stops the threads that can be stopped.
        begin: Called in the copy before its first task.
    """
    with ExitStack() as opened:
        channels, pid = None, None
        if tasks and _may_fork():
            with suppress(OSError):
                channels = opened.enter_context(_connect(len(tasks)))
        try:
            if channels is not None:
                parent = os.getpid()
                with pausing(), _blocking_signals() as before:
                    pid = _fork()
                    if pid == 0:
                        _answer(tasks, channels, begin=begin, signals=before, parent=parent)
                channels.to_notices.close()
            yield SharedTasks(tasks, None if pid is None else channels)
        finally:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _may_fork() -> bool:
    # Where ends of processes are ignored, as some programs have those that they start do, the
    # system forgets a copy by itself.
    return (
        sys.platform == "linux"
        and count_cores() > 1
        and _THREADS.is_dir()
        and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN
    )


@contextmanager
def _connect(num_tasks: int) -> Iterator[_Channels]:
    """Yield the connections for some tasks, at most 256.

    Raises:
        OSError: Too many files are open, or no temporary file can be made.
    """
    with ExitStack() as opened:

        def open_pipe() -> tuple[BinaryIO, BinaryIO]:
            # Nothing is read ahead: the other process may be meant.
            reading, writing = os.pipe()
            ends: list[Any] = [os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)]
            return opened.enter_context(ends[0]), opened.enter_context(ends[1])

        claims, to_claims = open_pipe()
        with to_claims:
            to_claims.write(bytes(range(num_tasks)))
        notices, to_notices = open_pipe()
        to_answers = opened.enter_context(tempfile.TemporaryFile())
        # Opened once more: it is read and written at different places.
        again = os.open(f"/proc/self/fd/{to_answers.fileno()}", os.O_RDONLY)
        answers = opened.enter_context(os.fdopen(again, "rb"))
        yield _Channels(claims, notices, to_notices, answers, to_answers)


@contextmanager
def _blocking_signals() -> Iterator[set[int]]:
    """Hold back signals during the block, and yield those that were held back before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork() -> int | None:
    """Fork, and return what `os.fork` does; None if there are other threads, or too little memory."""
    for thread in threading.enumerate():
        # Those that Python did not start can't be waited for.
        with suppress(RuntimeError, AssertionError):
            thread.join(_ENDING_S)
    began = time.monotonic()
    while len(os.listdir(_THREADS)) > 1:
        # The system forgets a thread a little later than Python.
        if threading.active_count() > 1 or time.monotonic() - began > _ENDING_S:
            return None
        time.sleep(_PAUSE_S)
    try:
        return os.fork()
    except OSError:
        return None


def _answer(
    tasks: Mapping[Key, Callable[[], Answer]],
    channels: _Channels,
    *,
    begin: Callable[[], None],
    signals: Iterable[int],
    parent: int,
) -> NoReturn:
    """Work on tasks in the copy, and end it. Whoever misses an answer meets the error again."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            for number in _ENDING_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            # Without a reader, its next notice ends it.
            channels.notices.close()
            begin()
            functions = list(tasks.values())
            while (index := channels.claim()) is not None:
                pickle.dump((index, functions[index]()), channels.to_answers)
                channels.to_answers.flush()
                channels.to_notices.write(b".")
    finally:
        # Nothing of the original's is cleaned up, or written a second time.
        os._exit(0)
