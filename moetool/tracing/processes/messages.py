"""Messages between processes, through torch's key-value store."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from moetool.errors import LostProcessError, UsageError
from moetool.tracing.processes.environment import ProcessPlace
from moetool.tracing.processes.failures import Failure

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_LOOK_HINT = "Look at its output and its host; then run the same command again with --resume."
_START_HINT = "Start all processes at the same time, with the same MASTER_ADDR and MASTER_PORT."

_BEAT_S = 1.0
# Between two looks for a message.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
# The store takes no value of more than 8 MiB.
_CHUNK_BYTES = 4 << 20
# So long the process that holds the store lets the others learn of a failure.
_FAREWELL_S = 5.0


@dataclass
class _Connection:
    """A connection, and the number of runs that have used it; each has its own keys."""

    store: TCPStore
    num_runs: int = 0


# They stay open until the process ends, because others may still use the store that it holds.
_connections: dict[ProcessPlace, _Connection] = {}


class MessageStore:
    """A store of values that all processes reach, with signs of life and the first failure.

    Each process gives a sign of life every second, from a thread, which also watches: the first
    process watches all others, and these watch the first. Who waits for another waits as long as
    that one lives.

    Args:
        place: Of this process, one of several.
        start_timeout_s: Seconds within which every process must have come.
        lost_after_s: Seconds without a sign of life after which a process counts as dead.

    Raises:
        UsageError: The store can't be reached.
    """

    def __init__(self, place: ProcessPlace, *, start_timeout_s: float, lost_after_s: float) -> None:
        self._place = place
        self._start_timeout_s = start_timeout_s
        self._most_misses = max(int(lost_after_s / _BEAT_S), 1)
        connection = _connect(place, timeout_s=start_timeout_s)
        connection.num_runs += 1
        self._store = connection.store
        self._prefix = f"moetool/{connection.num_runs}"
        # Set by the thread.
        self._failure: Failure | None = None
        self._loss: str | None = None
        self._last_beats: dict[int, bytes] = {}
        self._num_misses: Counter[int] = Counter()
        self._is_over = threading.Event()
        self._beating = threading.Thread(target=self._keep_beating, daemon=True)
        self._beating.start()

    def claim_failure(self, failure: Failure) -> Failure:
        """Publish a failure unless another process has failed before; return the first."""
        with self._reaching():
            content = self._store.compare_set(
                self._name("failure"), "", pickle.dumps(failure).hex()
            )
        self._failure = first = _read_failure(content)
        return first

    def check(self) -> None:
        """Check that no process has failed or died, as far as this one knows; takes no time.

        Raises:
            LostProcessError: One has.
        """
        if self._failure is not None:
            raise LostProcessError(
                f"Process {self._failure.rank} of {self._place.number} failed: "
                f"{self._failure.message}",
                hint=self._failure.hint,
            )
        if self._loss is not None:
            raise LostProcessError(self._loss, hint=_LOOK_HINT)

    def put(self, key: str, value: object) -> None:
        """Publish a value that can be pickled."""
        content = pickle.dumps(value)
        chunks = [content[at : at + _CHUNK_BYTES] for at in range(0, len(content), _CHUNK_BYTES)]
        with self._reaching():
            for index, chunk in enumerate(chunks):
                self._set(f"{key}/{index}", chunk)
            # Last, because others take it for the sign that all is there.
            self._set(key, str(len(chunks)).encode())

    def take(self, key: str, *, forget: bool = False) -> Any:
        """Return a value that is there, see `wait`, and perhaps remove it from the store."""
        with self._reaching():
            names = [self._name(f"{key}/{at}") for at in range(int(self._get(key)))]
            value = pickle.loads(b"".join(self._store.get(name) for name in names))
            if forget:
                for name in names:
                    self._store.delete_key(name)
        return value

    def wait(self, keys: Mapping[int, str]) -> None:
        """Wait until each of some processes, given by rank, has published a key.

        Raises:
            LostProcessError: A process has failed, or gives no sign of life.
        """
        for rank in self._poll(keys):
            with self._reaching():
                # In this order, because the key may come just before the farewell.
                has_left = self._store.check([self._name(f"left/{rank}")])
                if has_left and not self._store.check([self._name(keys[rank])]):
                    raise LostProcessError(
                        f"Process {rank} of {self._place.number} has ended early.",
                        hint=_LOOK_HINT,
                    )

    def wait_for_start(self) -> None:
        """Wait until every process has come.

        Raises:
            UsageError: One hasn't, in time.
            LostProcessError: One has failed.
        """
        self.put(f"here/{self._place.rank}", True)
        began = time.monotonic()
        for rank in self._poll({rank: f"here/{rank}" for rank in range(self._place.number)}):
            if time.monotonic() - began > self._start_timeout_s:
                raise UsageError(
                    f"Process {rank} of {self._place.number} has not started within "
                    f"{self._start_timeout_s:g} s.",
                    hint=_START_HINT,
                )

    def close(self) -> None:
        """Give no more signs of life; the holder of the store lets the others go first."""
        self._is_over.set()
        self._beating.join()
        with suppress(LostProcessError):
            self.put(f"left/{self._place.rank}", True)
        if self._place.rank == 0 and not self._place.has_agent:
            began = time.monotonic()
            came = [rank for rank in range(1, self._place.number) if self._find_beat(rank)]
            left = {rank: f"left/{rank}" for rank in came}
            for _ in self._poll(left, ignoring_failures=True):
                if time.monotonic() - began > _FAREWELL_S:
                    return

    def _poll(self, keys: Mapping[int, str], *, ignoring_failures: bool = False) -> Iterator[int]:
        """Yield a process that has not published its key, now and then, until all have."""
        pause_s = _SHORTEST_PAUSE_S
        for rank, key in keys.items():
            while True:
                if not ignoring_failures:
                    self.check()
                with self._reaching():
                    if self._store.check([self._name(key)]):
                        break
                yield rank
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _find_beat(self, rank: int) -> bytes:
        """Return a process's latest sign of life; empty if it has given none."""
        with self._reaching():
            name = self._name(f"beat/{rank}")
            return self._store.get(name) if self._store.check([name]) else b""

    def _keep_beating(self) -> None:
        """Give signs of life, and look for those of others and for failures, until it is over."""
        for beat in itertools.count():
            try:
                self._set(f"beat/{self._place.rank}", str(beat).encode())
                name = self._name("failure")
                if self._failure is None and self._store.check([name]):
                    self._failure = _read_failure(self._store.get(name))
                for rank in range(1, self._place.number) if self._place.rank == 0 else [0]:
                    self._watch(rank)
            except (RuntimeError, LostProcessError):
                # A store that does not answer is a process that does not.
                self._count_miss(0)
            if self._is_over.wait(_BEAT_S):
                return

    def _watch(self, rank: int) -> None:
        """Count the signs of life that a process has failed to give."""
        beat = self._find_beat(rank)
        if beat != self._last_beats.get(rank, beat):
            self._num_misses[rank] = 0
        elif rank in self._last_beats and not self._store.check([self._name(f"left/{rank}")]):
            self._count_miss(rank)
        if beat:
            self._last_beats[rank] = beat

    def _count_miss(self, rank: int) -> None:
        # In signs of this process's own life, so that a machine may sleep.
        self._num_misses[rank] += 1
        if self._num_misses[rank] >= self._most_misses:
            self._loss = (
                f"Process {rank} of {self._place.number} has not answered for "
                f"{self._num_misses[rank] * _BEAT_S:.0f} s."
            )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn errors of the store into a sentence.

        Raises:
            LostProcessError: It can't be reached.
        """
        try:
            yield
        except RuntimeError as error:
            self.check()
            holder = "the launcher" if self._place.has_agent else "process 0"
            raise LostProcessError(
                f"Process {self._place.rank} of {self._place.number} can't reach {holder} any more.",
                hint=_LOOK_HINT,
            ) from error

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _get(self, key: str) -> bytes:
        value: bytes = self._store.get(self._name(key))
        return value

    def _set(self, key: str, content: bytes) -> None:
        store: Any = self._store
        store.set(self._name(key), content)


def _read_failure(content: bytes) -> Failure:
    failure: Failure = pickle.loads(bytes.fromhex(content.decode()))
    return failure


def _connect(place: ProcessPlace, *, timeout_s: float) -> _Connection:
    """Return the connection to the store at a place's address.

    The first process holds the store if no launcher does.
    """
    if place not in _connections:
        _connections[place] = _Connection(_open_store(place, timeout_s=timeout_s))
    return _connections[place]


def _open_store(place: ProcessPlace, *, timeout_s: float) -> TCPStore:
    from torch.distributed import TCPStore

    assert place.address is not None
    is_holder = place.rank == 0 and not place.has_agent
    try:
        return TCPStore(
            place.address,
            place.port,
            world_size=place.number,
            is_master=is_holder,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            # `init_process_group` holds a store at the same port.
            multi_tenant=True,
        )
    except RuntimeError as error:
        where = f"{place.address}:{place.port}"
        raise UsageError(
            f"Process 0 of {place.number} can't wait for the others at {where}."
            if is_holder
            else f"Process {place.rank} of {place.number} has found no process 0 at {where} "
            f"within {timeout_s:g} s.",
            hint=_START_HINT,
            facts=[f"seen: {str(error).splitlines()[0]}"],
        ) from error
