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

from moetool.simulation.memory.allocator.pools import (
    Pool,
    choose_pool,
    make_pools,
    round_up,
    size_segment,
)


class DeviceFullError(Exception):
    """The device has no room for a segment, even after all free segments have been given back."""


class CachingAllocator:
    """Counts the memory that torch would count for the same allocations and frees.

    Once segments have been given back, the driver fills the gaps, and torch may then choose a
    different one among free blocks of equal size.

    Attributes:
        pools: For the small blocks and the large ones of the main stream, and of another.
        capacity_bytes: Limit for all segments together; None for a device that never runs full.
        num_retries: Number of times that segments were given back to make room.
        allocated_bytes: Size of all blocks in use: `torch.cuda.memory_allocated`.
        reserved_bytes: Size of all segments: `torch.cuda.memory_reserved`.
        peak_allocated_bytes: Largest `allocated_bytes`: `torch.cuda.max_memory_allocated`.
        peak_reserved_bytes: Largest `reserved_bytes`: `torch.cuda.max_memory_reserved`.
    """

    __slots__ = (
        "_last_handle",
        "_used",
        "allocated_bytes",
        "capacity_bytes",
        "num_retries",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "pools",
        "reserved_bytes",
    )

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.num_retries = 0
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.pools = make_pools()
        # The pool and the address of each block in use.
        self._used: dict[int, tuple[Pool, int]] = {}
        self._last_handle = 0

    def fork(self, *, capacity_bytes: int | None) -> CachingAllocator:
        """Return an allocator in the same state, in which the blocks in use are never freed."""
        allocator = CachingAllocator(capacity_bytes=capacity_bytes)
        allocator.num_retries = self.num_retries
        allocator.allocated_bytes = self.allocated_bytes
        allocator.reserved_bytes = self.reserved_bytes
        allocator.peak_allocated_bytes = self.peak_allocated_bytes
        allocator.peak_reserved_bytes = self.peak_reserved_bytes
        allocator.pools = tuple(pool.fork() for pool in self.pools)
        return allocator

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
        needed_bytes = round_up(num_bytes)
        pool = self.pools[choose_pool(needed_bytes, is_on_side=is_on_side)]
        address = pool.take(needed_bytes)
        if address is None:
            address = self.take_from_device(needed_bytes, pool)
        self.allocated_bytes += pool.used[address]
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        self._last_handle += 1
        self._used[self._last_handle] = pool, address
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
        pool, address = self._find(handle)
        del self._used[handle]
        self.allocated_bytes -= pool.give_back(address)

    def release_free_segments(self) -> None:
        """Give segments without a block in use back to the device: `torch.cuda.empty_cache`."""
        for pool in self.pools:
            self.reserved_bytes -= pool.release_free_segments()

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
        pool, address = self._find(handle)
        return pool.used[address]

    def address_of(self, handle: int) -> int:
        """Return the address of a block in use in its pool; that of 0 is 0."""
        return 0 if handle == 0 else self._find(handle)[1]

    def take_from_device(self, needed_bytes: int, pool: Pool) -> int:
        """Return the address of a block of a new segment.

        Raises:
            DeviceFullError: The device has no room left.
        """
        num_bytes = size_segment(needed_bytes)
        if not self._has_room_for(num_bytes):
            self.num_retries += 1
            self.release_free_segments()
            if not self._has_room_for(num_bytes):
                raise DeviceFullError
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        pool.add_segment(num_bytes)
        address = pool.take(needed_bytes)
        assert address is not None
        return address

    def _has_room_for(self, num_bytes: int) -> bool:
        capacity_bytes = self.capacity_bytes
        return capacity_bytes is None or self.reserved_bytes + num_bytes <= capacity_bytes

    def _find(self, handle: int) -> tuple[Pool, int]:
        found = self._used.get(handle)
        if found is None:
            raise ValueError(f"no block in use has the handle {handle}")
        return found
