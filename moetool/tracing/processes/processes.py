"""The processes that trace together: their ranks, and what they say to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import count
from platform import python_version
from typing import Any, TypeVar

import moetool
from moetool.errors import MoetoolError, UsageError
from moetool.tracing.processes.environment import ProcessPlace, read_place
from moetool.tracing.processes.failures import Failure
from moetool.tracing.processes.messages import MessageStore

# A host whose libraries come over a network takes a minute to load them.
START_TIMEOUT_S = 120.0
LOST_AFTER_S = 60.0

_LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "pyarrow")

Value = TypeVar("Value")


class Processes:
    """This process and those that were started with it; a single process needs no others.

    All of them call `broadcast`, `gather`, `barrier` and `agree` in the same order. Each of these
    waits as long as the others live, and raises once one has failed or died.

    Attributes:
        rank: Of this process, from 0.
        number: Of processes.
        local_rank: Rank among the processes of this host.
        local_number: Number of processes of this host; None if unknown.
        have_met: Whether all have come.

    Args:
        place: See `read_place`; None is a single process.
        start_timeout_s: Seconds within which every process must have come.
        lost_after_s: Seconds without a sign of life after which a process counts as dead.
    """

    def __init__(
        self,
        place: ProcessPlace | None = None,
        *,
        start_timeout_s: float = START_TIMEOUT_S,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        self._place = place or ProcessPlace()
        self.rank, self.number = self._place.rank, self._place.number
        self.local_rank, self.local_number = self._place.local_rank, self._place.local_number
        self._start_timeout_s = start_timeout_s
        self._lost_after_s = lost_after_s
        self._messages: MessageStore | None = None
        self._unreachable: MoetoolError | None = None
        self.have_met = False
        self._rounds = count()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks and finishes the trace."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.number > 1

    def meet(self) -> None:
        """Wait for the other processes to come; every exchange does so first.

        Raises:
            UsageError: One hasn't come in time.
            LostProcessError: One has failed.
        """
        if self.are_several and not self.have_met:
            self._connect().wait_for_start()
            self.have_met = True

    def broadcast(self, value: Value) -> Value:
        """Return the value that the first process gives.

        Raises:
            LostProcessError: A process has failed or died.
        """
        if not self.are_several:
            return value
        messages, key = self._begin("broadcast")
        if self.is_first:
            messages.put(key, value)
            return value
        messages.wait({0: key})
        given: Value = messages.take(key)
        return given

    def receive(self) -> Any:
        """Return the value that the first process broadcasts, on another one.

        Raises:
            LostProcessError: A process has failed or died.
        """
        return self.broadcast(None)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of ranks; on the others, nothing.

        Raises:
            LostProcessError: A process has failed or died.
        """
        if not self.are_several:
            return [value]
        messages, key = self._begin("gather")
        if not self.is_first:
            messages.put(f"{key}/{self.rank}", value)
            return []
        keys = {rank: f"{key}/{rank}" for rank in range(1, self.number)}
        messages.wait(keys)
        return [value, *(messages.take(key, forget=True) for key in keys.values())]

    def barrier(self) -> None:
        """Wait until all processes are here.

        Raises:
            LostProcessError: A process has failed or died.
        """
        self.gather(None)
        self.broadcast(None)

    def agree(self, values: Mapping[str, object]) -> None:
        """Check that all processes have the same values, and the same versions of libraries.

        Args:
            values: Compared as text, by the names that the user knows them by, such as
                `--batch-size`.

        Raises:
            UsageError: Processes differ; the first value in which they do is named.
            LostProcessError: A process has failed or died.
        """
        if not self.are_several:
            return
        texts = {name: str(value) for name, value in {**values, **_list_versions()}.items()}
        given = self.gather(texts)
        difference = self.broadcast(_find_difference(given) if given else None)
        if difference is not None:
            raise UsageError(
                difference,
                hint="Start all processes with the same arguments, in the same environment.",
            )

    def check(self) -> None:
        """Check that no process has failed, as far as this one knows; takes no time.

        Raises:
            LostProcessError: One has.
        """
        if self._messages is not None:
            self._messages.check()

    def claim_failure(self, *, exit_code: int, message: str, hint: str) -> Failure:
        """Tell the other processes why this one ends, and return the failure that came first.

        Raises:
            MoetoolError: They can't be reached.
        """
        failure = Failure(self.rank, exit_code, message, hint)
        return self._connect().claim_failure(failure) if self.are_several else failure

    def close(self) -> None:
        """Leave the others; the first process leaves last."""
        if self._messages is not None:
            self._messages.close()
            self._messages = None

    def _connect(self) -> MessageStore:
        if self._unreachable is not None:
            # Nobody waits twice for processes that have not come.
            raise self._unreachable
        if self._messages is None:
            try:
                self._messages = MessageStore(
                    self._place,
                    start_timeout_s=self._start_timeout_s,
                    lost_after_s=self._lost_after_s,
                )
            except MoetoolError as error:
                self._unreachable = error
                raise
        return self._messages

    def _begin(self, action: str) -> tuple[MessageStore, str]:
        """Return the store and the key of the next exchange."""
        self.meet()
        return self._connect(), f"{action}/{next(self._rounds)}"


def find_processes() -> Processes:
    """Return this process and those that torchrun or accelerate started with it.

    Raises:
        UsageError: The environment names a part of what it takes, or contradicts itself.
    """
    return Processes(read_place(), start_timeout_s=START_TIMEOUT_S, lost_after_s=LOST_AFTER_S)


def _list_versions() -> dict[str, str]:
    return {
        "the version of moetool": moetool.__version__,
        "the version of Python": python_version(),
        **{f"the version of {library}": version(library) for library in _LIBRARIES},
    }


def _find_difference(given: Sequence[Mapping[str, str]]) -> str | None:
    """Return a sentence about the first value in which processes differ; None if none does."""
    first, *others = given
    for name, value in first.items():
        for rank, other in enumerate(others, start=1):
            if other.get(name) != value:
                return (
                    f"Processes differ in {name}: process 0 has {value!r}, "
                    f"process {rank} has {other.get(name)!r}."
                )
    return None
