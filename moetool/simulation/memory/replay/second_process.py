"""Long replays in a second process, while this one simulates further runs."""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from moetool.process.cores import count_cores
from moetool.process.worker import Worker, WorkerError
from moetool.simulation.memory.replay.ends_replay import EndsReplay
from moetool.simulation.memory.replay.memory_replay import MemoryProfile
from moetool.simulation.memory.replay.timeline_replay import TimelineReplay

RunReplay = TimelineReplay | EndsReplay

# A replay takes about 0.7 s for a million events, and another process as long as for 200,000 of them
# until it begins.
_FEWEST_EVENTS_OF_LONG = 200_000
WORKER = (sys.executable, "-m", "moetool.simulation.memory.replay.worker")


def is_worthwhile() -> bool:
    """Return whether there is a core for a second process, and a Python that runs it."""
    # The executable of a frozen application is that application.
    return count_cores() > 1 and bool(sys.executable) and not getattr(sys, "frozen", False)


def is_long(replay: RunReplay) -> bool:
    """Return whether a replay takes longer than to start another process for it."""
    return replay.num_events >= _FEWEST_EVENTS_OF_LONG


class PendingReplay:
    """A replay that a second process was given.

    Args:
        replay: The same replay, for this process to do if that one doesn't.
        answer: The other process's answer; None if it was killed.
    """

    def __init__(self, replay: RunReplay, answer: Future[MemoryProfile | None]) -> None:
        self._replay = replay
        self._answer = answer

    def finish(self) -> MemoryProfile:
        """Return the profile, and replay the run here if the process has not begun to, or failed."""
        if not self._answer.cancel():
            try:
                profile = self._answer.result()
            except (OSError, WorkerError):
                # There may be no program to start, or too little memory for two processes.
                profile = None
            if profile is not None:
                return profile
        return self._replay(None)


class SecondProcess:
    """A process that replays runs, one after another.

        with SecondProcess() as second:
            pending = second.start(replay)
            ...
            pending.finish()

    It starts with the first replay, and ends when this object is left.
    """

    def __init__(self) -> None:
        # Its only thread waits for the process's answers.
        self._thread: ThreadPoolExecutor | None = None
        self._worker: Worker | None = None
        self._is_left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left = True
        if self._worker is not None:
            self._worker.kill()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        if self._worker is not None:
            self._worker.end()

    def start(self, replay: RunReplay) -> PendingReplay:
        """Start a replay."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        return PendingReplay(replay, self._thread.submit(self._ask, replay))

    def _ask(self, replay: RunReplay) -> MemoryProfile | None:
        if self._worker is None:
            self._worker = Worker(WORKER)
        if self._is_left:
            self._worker.kill()
        profile: MemoryProfile | None = self._worker.ask(replay)
        return profile
