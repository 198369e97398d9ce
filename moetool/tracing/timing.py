"""Wall time of a run by stage."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from moetool.plain import show_fields


class Stage(StrEnum):
    """Stages of a run. Several may be under way at once, in different threads."""

    TOKENIZE = "tokenize"
    LOAD = "load"
    FORWARD = "forward"
    COPY = "copy"
    BUILD = "build"
    WRITE = "write"


@dataclass(frozen=True)
class RunTimings:
    """Time that a run took, by stage.

    Attributes:
        elapsed_s: Wall time of the whole run.
        stages_s: Wall time during which at least one thread was in a stage, by stage: reading and
            checking tokens, loading weights, forward passes, copies from the device, building rows,
            writing them. Stages overlap, so their sum may exceed the wall time of the run. `other`
            is the time during which no stage was under way, as while libraries load.
        num_tokens: Tokens that went through the model.
    """

    elapsed_s: float
    stages_s: dict[str, float]
    num_tokens: int

    __repr__ = show_fields

    @property
    def shares(self) -> dict[str, float]:
        """Each stage's share of the wall time of the run; empty for a run that took none."""
        if not self.elapsed_s:
            return {}
        return {name: seconds / self.elapsed_s for name, seconds in self.stages_s.items()}

    @property
    def forward_tokens_per_s(self) -> float | None:
        """Tokens per second of the forward passes; None if they took no time."""
        seconds = self.stages_s[Stage.FORWARD]
        return self.num_tokens / seconds if seconds else None


class StageClock:
    """Adds up the wall time of each stage of a run that starts now. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_s = time.perf_counter()
        self._seconds: dict[Stage | None, float] = dict.fromkeys((*Stage, None), 0.0)
        # How many threads are in each stage, and since when there is at least one. None stands for
        # any stage.
        self._active: Counter[Stage | None] = Counter()
        self._since_s: dict[Stage | None, float] = {}

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Count the time until the end of the block as this stage's."""
        with self._lock:
            now_s = time.perf_counter()
            for each in (stage, None):
                if not self._active[each]:
                    self._since_s[each] = now_s
                self._active[each] += 1
        try:
            yield
        finally:
            with self._lock:
                now_s = time.perf_counter()
                for each in (stage, None):
                    self._active[each] -= 1
                    if not self._active[each]:
                        self._seconds[each] += now_s - self._since_s[each]

    def read(self, *, num_tokens: int) -> RunTimings:
        """Return the times until now, of stages that have ended.

        Args:
            num_tokens: Tokens that went through the model.
        """
        with self._lock:
            elapsed_s = time.perf_counter() - self._started_s
            return RunTimings(
                elapsed_s=elapsed_s,
                stages_s={
                    **{stage.value: self._seconds[stage] for stage in Stage},
                    "other": elapsed_s - self._seconds[None],
                },
                num_tokens=num_tokens,
            )
