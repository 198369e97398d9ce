"""Calls that may never end, run in threads that nobody waits for beyond one moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import TimeoutError as PoolTimeoutError
from multiprocessing.pool import ThreadPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Patience:
    """Runs calls side by side until it has had enough.

    A timeout between two bytes, which is all that HTTP libraries offer, never ends a server that
    sends one byte at a time. The threads are daemons: an abandoned one keeps no process alive.
    """

    def __init__(self, pool: ThreadPool, *, limit_s: float) -> None:
        self._pool = pool
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def call(self, function: Callable[[], Result]) -> Result:
        """Return what a call returns, or raise what it raises.

        Raises:
            TimeoutError: It has not ended in time.
        """
        return self.call_all(lambda call: call(), [function])[0]

    def call_all(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what a function returns for each item, or raise what it first raises.

        Raises:
            TimeoutError: Not all calls have ended in time.
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
def have_patience(*, num_threads: int, limit_s: float) -> Iterator[Patience]:
    """Yield what runs calls for `limit_s` seconds from now on, all of them together."""
    with ThreadPool(num_threads) as pool:
        yield Patience(pool, limit_s=limit_s)
