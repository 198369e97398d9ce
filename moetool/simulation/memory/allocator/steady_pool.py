"""A pool that gets the same requests again and again, and then knows what happens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator
from moetool.simulation.memory.allocator.pools import Pool

Numbers = NDArray[np.int64]


class _State(NamedTuple):
    """The blocks of a pool at some moment, without those that are never freed.

    Attributes:
        used: The address and size of each block in use.
        free: The free blocks, as `Pool.list_free` returns them.
    """

    used: tuple[tuple[int, int], ...]
    free: tuple[int, ...]


class Requests(NamedTuple):
    """Requests to a pool, in order.

    Attributes:
        needed_bytes: The bytes of whole blocks that are taken; 0 where a block is freed.
        freed: The address of the freed block, if it was taken earlier; -1 - n for the block that the
            n-th of these requests took; 0 where a block is taken.
    """

    needed_bytes: Numbers
    freed: Numbers

    @property
    def key(self) -> bytes:
        """The same for equal requests."""
        return self.needed_bytes.tobytes() + self.freed.tobytes()


class Outcome(NamedTuple):
    """The outcome of requests.

    Attributes:
        changes: For each request, by how much the allocated bytes grow.
        addresses: The address of each block that was taken.
    """

    changes: Numbers
    addresses: Numbers


class SteadyPool:
    """A pool on a device that never runs full.

    Such a pool depends on no other. Its state and its requests decide on its next state and on where
    blocks are placed, so requests that come again in the same state are not carried out.

    Args:
        allocator: The allocator that takes the pool's segments.
        pool: One of its pools. Blocks of it that are in use are never freed.
    """

    def __init__(self, allocator: CachingAllocator, pool: Pool) -> None:
        self._allocator = allocator
        self._pool = pool
        # Blocks that are never freed don't matter to its state.
        pool.used = {}
        # The state that it is in, if it is known; its blocks may still be those of an earlier one.
        self._state: _State | None = None
        self._is_behind = False
        self._last_needed_bytes: Numbers = np.empty(0, np.int64)
        self._known: dict[tuple[_State, bytes], tuple[Outcome, _State]] = {}

    def run(self, requests: Requests) -> Outcome:
        """Return the outcome of requests."""
        is_repeated = np.array_equal(self._last_needed_bytes, requests.needed_bytes)
        self._last_needed_bytes = requests.needed_bytes
        if not is_repeated:
            return self._carry_out(requests)
        before = self._describe() if self._state is None else self._state
        key = (before, requests.key)
        if key in self._known:
            outcome, self._state = self._known[key]
            self._is_behind = True
            return outcome
        self._state = before
        outcome = self._carry_out(requests)
        self._state = self._describe()
        self._known[key] = (outcome, self._state)
        return outcome

    def _carry_out(self, requests: Requests) -> Outcome:
        pool = self._pool
        if self._is_behind and self._state is not None:
            pool.used = dict(self._state.used)
            pool.set_free(self._state.free)
        self._state, self._is_behind = None, False
        take, give_back, used = pool.take, pool.give_back, pool.used
        addresses: list[int] = []
        changes: list[int] = []
        for needed_bytes, freed in zip(*map(np.ndarray.tolist, requests), strict=True):
            if needed_bytes:
                address = take(needed_bytes)
                if address is None:
                    address = self._allocator.take_from_device(needed_bytes, pool)
                addresses.append(address)
                changes.append(used[address])
            else:
                changes.append(-give_back(freed if freed >= 0 else addresses[-1 - freed]))
        return Outcome(np.array(changes, np.int64), np.array(addresses, np.int64))

    def _describe(self) -> _State:
        return _State(tuple(sorted(self._pool.used.items())), self._pool.list_free())
