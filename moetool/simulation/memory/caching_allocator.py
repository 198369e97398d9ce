"""Model of torch's CUDA caching allocator: memory reserved for allocations and frees in order.

It follows `c10/cuda/CUDACachingAllocator.cpp` under its default settings, for two streams at most,
each with its own pools. The rules
(torch 2.8 to 2.14):

- A request is rounded up to whole blocks of 512 bytes (`round_size`).
- Requests of at most 1 MiB are served from the small pool, larger ones from the large pool
  (`get_pool`).
- The smallest sufficient free block of the pool is taken, the lowest among equals
  (`get_free_block`).
- If there is none, a segment is taken from the device: 2 MiB for the small pool; for the large pool
  20 MiB, or for requests of 10 MiB or more their size rounded up to whole 2 MiB
  (`get_allocation_size`).
- The unused rest of a block becomes a free block after it: always in the small pool, if it is more
  than 1 MiB in the large one (`should_split`). Other blocks are handed out, and counted, whole.
- A freed block merges with adjacent free blocks of its segment (`free_block`).
- If the device has no room for a segment, all segments without a block in use, of both pools, are
  given back and the request is repeated (`release_cached_blocks`). Giving back fewer is tried only
  if the size of blocks that may be split is limited, which it is not by default
  (`release_available_cached_blocks`). If there is still no room, torch raises `OutOfMemoryError`.
"""

from __future__ import annotations

from bisect import bisect_left, insort

_MIB = 2**20
_BLOCK_BYTES = 512
_LARGEST_SMALL_BYTES = _MIB
_SMALL_SEGMENT_BYTES = 2 * _MIB
_LARGE_SEGMENT_BYTES = 20 * _MIB
_SMALLEST_OWN_SEGMENT_BYTES = 10 * _MIB
_OWN_SEGMENT_STEP_BYTES = 2 * _MIB

# A free block's size and address as one number, which compares faster than a pair.
_ADDRESS_BITS = 64
_HIGHEST_ADDRESS = 2**63


class _Pool:
    """The free blocks of a pool, in order of size and address.

    Attributes:
        smallest_rest_bytes: The smallest unused rest for which a block is split.
        keys: The size and address of each free block as one number, in order.
        blocks: The free blocks by key.
    """

    __slots__ = ("blocks", "keys", "smallest_rest_bytes")

    def __init__(self, smallest_rest_bytes: int) -> None:
        self.smallest_rest_bytes = smallest_rest_bytes
        self.keys: list[int] = []
        self.blocks: dict[int, _Block] = {}

    def take(self, needed_bytes: int) -> _Block | None:
        keys = self.keys
        index = bisect_left(keys, needed_bytes << _ADDRESS_BITS)
        if index == len(keys):
            return None
        block = self.blocks.pop(keys.pop(index))
        block.is_free = False
        return block

    def add(self, block: _Block) -> None:
        key = block.num_bytes << _ADDRESS_BITS | block.address
        insort(self.keys, key)
        self.blocks[key] = block
        block.is_free = True

    def remove(self, block: _Block) -> None:
        key = block.num_bytes << _ADDRESS_BITS | block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]


class _Block:
    """A stretch of a segment.

    Attributes:
        pool: The pool of its segment.
        previous: The block before it in its segment.
        next: The block after it in its segment.
        is_free: Whether it is in its pool's free list.
    """

    __slots__ = ("address", "is_free", "next", "num_bytes", "pool", "previous")

    def __init__(self, address: int, num_bytes: int, pool: _Pool) -> None:
        self.address = address
        self.num_bytes = num_bytes
        self.pool = pool
        self.previous: _Block | None = None
        self.next: _Block | None = None
        self.is_free = False

    def split_off(self, rest_bytes: int) -> _Block:
        """Cut off the end of the block and return it as a new block."""
        self.num_bytes -= rest_bytes
        rest = _Block(self.address + self.num_bytes, rest_bytes, self.pool)
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


class DeviceFullError(Exception):
    """The device has no room for a segment, even after all free segments have been given back."""


class CachingAllocator:
    """Counts the memory that torch would count for the same allocations and frees.

    Each segment has a lower address than the one before, as CUDA's driver places them in a new
    process. Once segments have been given back, the driver fills the gaps, and torch may then
    choose a different one among free blocks of equal size.

    Attributes:
        capacity_bytes: Limit for all segments together; None for a device that never runs full.
        num_retries: Number of times that segments were given back to make room.
        allocated_bytes: Size of all blocks in use: `torch.cuda.memory_allocated`.
        reserved_bytes: Size of all segments: `torch.cuda.memory_reserved`.
        peak_allocated_bytes: Largest `allocated_bytes`: `torch.cuda.max_memory_allocated`.
        peak_reserved_bytes: Largest `reserved_bytes`: `torch.cuda.max_memory_reserved`.
    """

    __slots__ = (
        "_last_handle",
        "_lowest_address",
        "_pools",
        "_used",
        "allocated_bytes",
        "capacity_bytes",
        "num_retries",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "reserved_bytes",
    )

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.num_retries = 0
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        # For the small blocks and the large ones of the main stream, and of another.
        self._pools = tuple(
            _Pool(smallest_rest_bytes=rest) for rest in 2 * (_BLOCK_BYTES, _LARGEST_SMALL_BYTES + 1)
        )
        self._used: dict[int, _Block] = {}
        self._last_handle = 0
        self._lowest_address = _HIGHEST_ADDRESS

    def allocate(self, num_bytes: int, *, is_on_side: bool = False) -> int:
        """Take a block and return its handle, or 0 for a request of 0 bytes.

        Args:
            num_bytes: The bytes requested.
            is_on_side: Whether it is requested on another stream than the main one.

        Raises:
            DeviceFullError: The device has no room left.
            ValueError: The number of bytes is negative.
        """
        if num_bytes <= 0:
            if num_bytes < 0:
                raise ValueError(f"can't allocate {num_bytes} bytes")
            return 0
        needed_bytes = -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        pool = self._pools[2 * is_on_side + (needed_bytes > _LARGEST_SMALL_BYTES)]
        block = pool.take(needed_bytes) or self._reserve_segment(needed_bytes, pool)
        rest_bytes = block.num_bytes - needed_bytes
        if rest_bytes >= pool.smallest_rest_bytes:
            pool.add(block.split_off(rest_bytes))
        self.allocated_bytes += block.num_bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        self._last_handle += 1
        self._used[self._last_handle] = block
        return self._last_handle

    def free(self, handle: int) -> None:
        """Give a block back to its pool.

        Args:
            handle: The handle from `allocate`; 0 is ignored.

        Raises:
            ValueError: No block in use has this handle.
        """
        if handle == 0:
            return
        block = self._used.pop(handle, None)
        if block is None:
            raise ValueError(f"no block in use has the handle {handle}")
        self.allocated_bytes -= block.num_bytes
        pool = block.pool
        previous = block.previous
        if previous is not None and previous.is_free:
            pool.remove(previous)
            previous.absorb_next()
            block = previous
        following = block.next
        if following is not None and following.is_free:
            pool.remove(following)
            block.absorb_next()
        pool.add(block)

    def release_free_segments(self) -> None:
        """Give segments without a block in use back to the device: `torch.cuda.empty_cache`."""
        for pool in self._pools:
            for block in list(pool.blocks.values()):
                if block.previous is None and block.next is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.num_bytes

    def restrict(self, capacity_bytes: int) -> None:
        """Limit the size of all segments from now on, as if they had never been larger.

        Raises:
            DeviceFullError: They are larger, even after all free segments have been given back.
        """
        self.capacity_bytes = capacity_bytes
        if not self._has_room_for(0):
            self.release_free_segments()
            if not self._has_room_for(0):
                raise DeviceFullError
        self.peak_reserved_bytes = min(self.peak_reserved_bytes, capacity_bytes)

    def reset_peaks(self) -> None:
        """Set the peaks to the present sizes: `torch.cuda.reset_peak_memory_stats`."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def size_of(self, handle: int) -> int:
        """Return the size of a block in use, as `allocated_bytes` counts it.

        Args:
            handle: The handle from `allocate`; the size of 0 is 0.

        Raises:
            ValueError: No block in use has this handle.
        """
        if handle == 0:
            return 0
        block = self._used.get(handle)
        if block is None:
            raise ValueError(f"no block in use has the handle {handle}")
        return block.num_bytes

    def _reserve_segment(self, needed_bytes: int, pool: _Pool) -> _Block:
        num_bytes = _segment_bytes(needed_bytes)
        if not self._has_room_for(num_bytes):
            self.num_retries += 1
            self.release_free_segments()
            if not self._has_room_for(num_bytes):
                raise DeviceFullError
        self._lowest_address -= num_bytes
        segment = _Block(self._lowest_address, num_bytes, pool)
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return segment

    def _has_room_for(self, num_bytes: int) -> bool:
        capacity_bytes = self.capacity_bytes
        return capacity_bytes is None or self.reserved_bytes + num_bytes <= capacity_bytes


def _segment_bytes(needed_bytes: int) -> int:
    if needed_bytes <= _LARGEST_SMALL_BYTES:
        return _SMALL_SEGMENT_BYTES
    if needed_bytes < _SMALLEST_OWN_SEGMENT_BYTES:
        return _LARGE_SEGMENT_BYTES
    return -(-needed_bytes // _OWN_SEGMENT_STEP_BYTES) * _OWN_SEGMENT_STEP_BYTES
