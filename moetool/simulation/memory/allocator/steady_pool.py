"""A pool that gets the same requests again and again, and then knows what happens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator
from moetool.simulation.memory.allocator.pools import Block, Pool

Numbers = NDArray[np.int64]


class _Piece(NamedTuple):
    """A block of a pool at some moment."""

    address: int
    num_bytes: int
    is_free: bool
    begins_segment: bool


# The blocks of a pool in order of their addresses, from which it can be built anew.
_State = tuple[_Piece, ...]


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
        self._used: dict[int, Block] = {}
        # The state that it is in, if it is known; the blocks may still be those of an earlier one.
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
        if self._is_behind and self._state is not None:
            self._build(self._state)
        self._state, self._is_behind = None, False
        pool, used = self._pool, self._used
        taken: list[Block] = []
        addresses: list[int] = []
        changes: list[int] = []
        for needed_bytes, freed in zip(*map(np.ndarray.tolist, requests), strict=True):
            if needed_bytes:
                block = pool.take(needed_bytes)
                if block is None:
                    block = self._allocator.take_from_device(needed_bytes, pool)
                taken.append(block)
                addresses.append(block.address)
                used[block.address] = block
                changes.append(block.num_bytes)
            else:
                block = used[freed] if freed >= 0 else taken[-1 - freed]
                del used[block.address]
                changes.append(-block.num_bytes)
                pool.give_back(block)
        return Outcome(np.array(changes, np.int64), np.array(addresses, np.int64))

    def _describe(self) -> _State:
        blocks = [*self._used.values(), *self._pool.blocks.values()]
        return tuple(
            sorted(
                _Piece(block.address, block.num_bytes, block.is_free, block.previous is None)
                for block in blocks
            )
        )

    def _build(self, state: _State) -> None:
        """Make the blocks of a state."""
        self._pool.clear()
        self._used.clear()
        previous: Block | None = None
        for address, num_bytes, is_free, begins_segment in state:
            block = Block(address, num_bytes, self._pool)
            # Blocks that are never freed, such as weights, aren't among them.
            is_next = previous is not None and previous.address + previous.num_bytes == address
            if previous is not None and is_next and not begins_segment:
                previous.next, block.previous = block, previous
            if is_free:
                self._pool.add(block)
            else:
                self._used[address] = block
            previous = block
