"""Pools of blocks, from which torch's caching allocator serves requests."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

_MIB = 2**20
_BLOCK_BYTES = 512
LARGEST_SMALL_BYTES = _MIB
_SMALL_SEGMENT_BYTES = 2 * _MIB
_LARGE_SEGMENT_BYTES = 20 * _MIB
_SMALLEST_OWN_SEGMENT_BYTES = 10 * _MIB
_OWN_SEGMENT_STEP_BYTES = 2 * _MIB

# A free block's size and address as one number, which compares faster than a pair.
_ADDRESS_BITS = 64
_HIGHEST_ADDRESS = 2**63

Bytes = TypeVar("Bytes", int, NDArray[np.int64])


class Block:
    """A stretch of a segment.

    Attributes:
        pool: The pool of its segment.
        previous: The block before it in its segment.
        next: The block after it in its segment.
        is_free: Whether it is in its pool's free list.
    """

    __slots__ = ("address", "is_free", "next", "num_bytes", "pool", "previous")

    def __init__(self, address: int, num_bytes: int, pool: Pool) -> None:
        self.address = address
        self.num_bytes = num_bytes
        self.pool = pool
        self.previous: Block | None = None
        self.next: Block | None = None
        self.is_free = False

    def split_off(self, rest_bytes: int) -> Block:
        """Cut off the end of the block and return it as a new block."""
        self.num_bytes -= rest_bytes
        rest = Block(self.address + self.num_bytes, rest_bytes, self.pool)
        rest.previous = self
        rest.next = self.next
        if rest.next is not None:
            rest.next.previous = rest
        self.next = rest
        return rest

    def absorb_next(self) -> None:
        """Merge the next block into this one."""
        absorbed = self.next
        assert absorbed is not None
        self.num_bytes += absorbed.num_bytes
        self.next = absorbed.next
        if self.next is not None:
            self.next.previous = self


class Pool:
    """The segments of a pool and its free blocks, in order of size and address.

    Each segment has a lower address than the one before, as CUDA's driver places them in a new
    process. Only blocks of one pool are compared, so each pool counts its own addresses.

    Attributes:
        smallest_rest_bytes: The smallest unused rest for which a block is split.
        blocks: The free blocks by key: their size and address as one number.
        lowest_address: The address of its latest segment.
    """

    __slots__ = ("_keys", "blocks", "lowest_address", "smallest_rest_bytes")

    def __init__(self, smallest_rest_bytes: int) -> None:
        self.smallest_rest_bytes = smallest_rest_bytes
        self.lowest_address = _HIGHEST_ADDRESS
        self.blocks: dict[int, Block] = {}
        self._keys: list[int] = []

    @property
    def is_exact(self) -> bool:
        """Whether each block that it hands out is as large as needed, because any rest is split off."""
        return self.smallest_rest_bytes == _BLOCK_BYTES

    def take(self, needed_bytes: int) -> Block | None:
        """Return the smallest sufficient free block, cut to size; None if there is none."""
        keys = self._keys
        index = bisect_left(keys, needed_bytes << _ADDRESS_BITS)
        if index == len(keys):
            return None
        block = self.blocks.pop(keys.pop(index))
        block.is_free = False
        rest_bytes = block.num_bytes - needed_bytes
        if rest_bytes >= self.smallest_rest_bytes:
            self.add(block.split_off(rest_bytes))
        return block

    def add_segment(self, num_bytes: int) -> None:
        """Add a segment, which is one free block."""
        self.lowest_address -= num_bytes
        self.add(Block(self.lowest_address, num_bytes, self))

    def give_back(self, block: Block) -> None:
        """Free a block, and merge it with the free blocks next to it."""
        previous = block.previous
        if previous is not None and previous.is_free:
            self.remove(previous)
            previous.absorb_next()
            block = previous
        following = block.next
        if following is not None and following.is_free:
            self.remove(following)
            block.absorb_next()
        self.add(block)

    def add(self, block: Block) -> None:
        """Put a block among the free ones."""
        key = block.num_bytes << _ADDRESS_BITS | block.address
        insort(self._keys, key)
        self.blocks[key] = block
        block.is_free = True

    def remove(self, block: Block) -> None:
        """Take a block from the free ones."""
        key = block.num_bytes << _ADDRESS_BITS | block.address
        del self._keys[bisect_left(self._keys, key)]
        del self.blocks[key]

    def clear(self) -> None:
        """Forget all free blocks."""
        self._keys.clear()
        self.blocks.clear()


def make_pools() -> tuple[Pool, ...]:
    """Return the pools for small and large blocks of the main stream, and those of another."""
    return tuple(
        Pool(smallest_rest_bytes=rest) for rest in 2 * (_BLOCK_BYTES, LARGEST_SMALL_BYTES + 1)
    )


@overload
def choose_pool(needed_bytes: int, *, is_on_side: bool) -> int: ...


@overload
def choose_pool(
    needed_bytes: NDArray[np.int64], *, is_on_side: NDArray[np.bool_]
) -> NDArray[np.int64]: ...


def choose_pool(needed_bytes: Any, *, is_on_side: Any) -> Any:
    """Return the index of the pool that serves a request for whole blocks of 512 bytes, or several."""
    return 2 * is_on_side + (needed_bytes > LARGEST_SMALL_BYTES)


def round_up(num_bytes: Bytes) -> Bytes:
    """Return the bytes of whole blocks of 512 bytes that a request takes, or each of several."""
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def size_segment(needed_bytes: int) -> int:
    """Return the size of the segment that the device is asked for."""
    if needed_bytes <= LARGEST_SMALL_BYTES:
        return _SMALL_SEGMENT_BYTES
    if needed_bytes < _SMALLEST_OWN_SEGMENT_BYTES:
        return _LARGE_SEGMENT_BYTES
    return -(-needed_bytes // _OWN_SEGMENT_STEP_BYTES) * _OWN_SEGMENT_STEP_BYTES
