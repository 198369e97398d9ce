"""Calls that may never return, run in threads under one deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import TimeoutError as PoolTimeoutError
from multiprocessing.pool import ThreadPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Deadline:
    """Runs calls in parallel until one shared deadline.

    HTTP libraries only limit the time between two bytes, which a server that sends one byte at a
    time never exceeds. The threads are daemons, so an abandoned one keeps no process alive.
    """

    def __init__(self, pool: ThreadPool, *, limit_s: float) -> None:
        self._pool = pool
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def call(self, function: Callable[[], Result]) -> Result:
        """Return what a call returns, or raise what it raises.

        Raises:
            TimeoutError: The call did not return before the deadline.
        """
        return self.call_all(lambda call: call(), [function])[0]

    def call_all(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what a function returns for each item, or raise what it first raises.

        Raises:
            TimeoutError: Not all calls returned before the deadline.
        """
        results = self._pool.imap(function, items)
        returned = []
        try:
            while True:
                returned.append(results.next(timeout=max(0, self._end_s - time.monotonic())))
        except StopIteration:
            return returned
        except PoolTimeoutError:
            raise TimeoutError(f"no end after {self._limit_s:g} s") from None


@contextmanager
def within_deadline(*, num_threads: int, limit_s: float) -> Iterator[Deadline]:
    """Yield a deadline `limit_s` seconds from now, for all calls together."""
    with ThreadPool(num_threads) as pool:
        yield Deadline(pool, limit_s=limit_s)
