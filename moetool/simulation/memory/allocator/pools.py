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

# A free block's size and address are one number, which compares faster than a pair. Addresses fit
# into numpy's signed numbers.
_ADDRESS_BITS = 63
_ADDRESS_MASK = (1 << _ADDRESS_BITS) - 1

Bytes = TypeVar("Bytes", int, NDArray[np.int64])


class Pool:
    """The segments of a pool, its blocks in use, and the free ones in order of size and address.

    Each segment has a lower address than the one before, as CUDA's driver places them in a new
    process. Only blocks of one pool are compared, so each pool counts its own addresses. No two
    segments touch, so that only blocks of one segment merge.

    Attributes:
        smallest_rest_bytes: The smallest unused rest for which a block is split.
        used: The size of each block in use, by its address.
        lowest_address: The address of its latest segment.
    """

    # A generation takes and frees up to a million blocks: their methods make no objects, and call
    # nothing but what is built in.
    __slots__ = ("_edges", "_keys", "_segments", "lowest_address", "smallest_rest_bytes", "used")

    def __init__(self, smallest_rest_bytes: int) -> None:
        self.smallest_rest_bytes = smallest_rest_bytes
        self.used: dict[int, int] = {}
        self.lowest_address = _ADDRESS_MASK
        # The size and address of each free block as one number, in order.
        self._keys: list[int] = []
        # The other edge of a free block, by each of its edges. Free blocks never touch.
        self._edges: dict[int, int] = {}
        # The size of each segment, by its address.
        self._segments: dict[int, int] = {}

    @property
    def is_exact(self) -> bool:
        """Whether each block that it hands out is as large as needed, because any rest is split off."""
        return self.smallest_rest_bytes == _BLOCK_BYTES

    def take(self, needed_bytes: int) -> int | None:
        """Return the address of the smallest sufficient free block, cut to size; None without one."""
        keys, edges = self._keys, self._edges
        index = bisect_left(keys, needed_bytes << _ADDRESS_BITS)
        if index == len(keys):
            return None
        key = keys.pop(index)
        address, num_bytes = key & _ADDRESS_MASK, key >> _ADDRESS_BITS
        end = address + num_bytes
        del edges[address]
        rest_bytes = num_bytes - needed_bytes
        if rest_bytes >= self.smallest_rest_bytes:
            start = address + needed_bytes
            edges[start], edges[end] = end, start
            # The rest is smaller, and so comes earlier.
            insort(keys, rest_bytes << _ADDRESS_BITS | start, 0, index)
            num_bytes = needed_bytes
        else:
            del edges[end]
        self.used[address] = num_bytes
        return address

    def give_back(self, address: int) -> int:
        """Free a block, merge it with the free blocks next to it, and return its own size."""
        keys, edges = self._keys, self._edges
        num_bytes = self.used.pop(address)
        start, end = address, address + num_bytes
        if address in edges:
            start = edges.pop(address)
            del keys[bisect_left(keys, (address - start) << _ADDRESS_BITS | start)]
        if end in edges:
            following, end = end, edges.pop(end)
            del keys[bisect_left(keys, (end - following) << _ADDRESS_BITS | following)]
        edges[start], edges[end] = end, start
        insort(keys, (end - start) << _ADDRESS_BITS | start)
        return num_bytes

    def add_segment(self, num_bytes: int) -> None:
        """Add a segment, which is one free block."""
        # The gap before the one above it keeps their blocks apart.
        self.lowest_address -= num_bytes + _BLOCK_BYTES
        start, end = self.lowest_address, self.lowest_address + num_bytes
        self._segments[start] = num_bytes
        self._edges[start], self._edges[end] = end, start
        insort(self._keys, num_bytes << _ADDRESS_BITS | start)

    def release_free_segments(self) -> int:
        """Remove the segments without a block in use, and return their size."""
        num_bytes = 0
        for start, size in list(self._segments.items()):
            if self._edges.get(start) == start + size:
                del self._keys[bisect_left(self._keys, size << _ADDRESS_BITS | start)]
                del self._edges[start], self._edges[start + size], self._segments[start]
                num_bytes += size
        return num_bytes

    def fork(self) -> Pool:
        """Return a pool in the same state, in which the blocks in use are never freed."""
        pool = Pool(self.smallest_rest_bytes)
        pool.lowest_address = self.lowest_address
        pool._keys = self._keys.copy()
        pool._edges = self._edges.copy()
        pool._segments = self._segments.copy()
        return pool

    def list_free(self) -> tuple[int, ...]:
        """Return the free blocks, each as one number, in order."""
        return tuple(self._keys)

    def set_free(self, keys: tuple[int, ...]) -> None:
        """Make other blocks the free ones: those of `list_free` at some moment."""
        self._keys = list(keys)
        self._edges.clear()
        for key in keys:
            start = key & _ADDRESS_MASK
            end = start + (key >> _ADDRESS_BITS)
            self._edges[start], self._edges[end] = end, start


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
