"""An allocator that searches all its blocks, to compare the quick one with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator

MIB = 2**20


@dataclass
class NaiveBlock:
    num_bytes: int
    user: int | None = None


@dataclass
class NaiveSegment:
    is_small: bool
    blocks: list[NaiveBlock]


@dataclass
class NaiveAllocator:
    """The same rules without an index: every question is answered by looking at every block."""

    segments: list[NaiveSegment] = field(default_factory=list)
    capacity_bytes: int = 2**60
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0

    @property
    def allocated_bytes(self) -> int:
        return sum(block.num_bytes for _, block in self._blocks() if block.user is not None)

    @property
    def reserved_bytes(self) -> int:
        return sum(block.num_bytes for _, block in self._blocks())

    def allocate(self, num_bytes: int, *, user: int) -> None:
        needed = num_bytes
        while needed % 512:
            needed += 1
        is_small = needed <= MIB
        fits = [
            (segment, block)
            for segment, block in self._blocks()
            if segment.is_small == is_small and block.user is None and block.num_bytes >= needed
        ]
        if not fits:
            if is_small:
                taken = 2 * MIB
            elif needed < 10 * MIB:
                taken = 20 * MIB
            else:
                taken = next(size for size in range(0, 2**40, 2 * MIB) if size >= needed)
            if self.reserved_bytes + taken > self.capacity_bytes:
                self.release_free_segments()
            if self.reserved_bytes + taken > self.capacity_bytes:
                raise MemoryError
            segment = NaiveSegment(is_small, [NaiveBlock(taken)])
            self.segments.append(segment)
            fits = [(segment, segment.blocks[0])]
        # Of equal ones, the lowest: each segment lies below the one before.
        segment, block = min(fits, key=lambda fit: (fit[1].num_bytes, -self._find_place(fit[0])))
        spare = block.num_bytes - needed
        if spare >= 512 if is_small else spare > MIB:
            place = next(i for i, other in enumerate(segment.blocks) if other is block)
            segment.blocks[place : place + 1] = [NaiveBlock(needed, user), NaiveBlock(spare)]
        else:
            block.user = user
        self._raise_peaks()

    def free(self, user: int) -> None:
        for segment, block in list(self._blocks()):
            if block.user == user:
                block.user = None
                merged: list[NaiveBlock] = []
                for each in segment.blocks:
                    if merged and merged[-1].user is None and each.user is None:
                        merged[-1] = NaiveBlock(merged[-1].num_bytes + each.num_bytes)
                    else:
                        merged.append(each)
                segment.blocks = merged

    def release_free_segments(self) -> None:
        self.segments = [
            segment
            for segment in self.segments
            if any(block.user is not None for block in segment.blocks)
        ]

    def reset_peaks(self) -> None:
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self._raise_peaks()

    def size_of(self, user: int) -> int:
        return next(block.num_bytes for _, block in self._blocks() if block.user == user)

    def _find_place(self, segment: NaiveSegment) -> int:
        return next(i for i, other in enumerate(self.segments) if other is segment)

    def _blocks(self) -> Iterator[tuple[NaiveSegment, NaiveBlock]]:
        for segment in self.segments:
            for block in segment.blocks:
                yield segment, block

    def _raise_peaks(self) -> None:
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)


def figures(allocator: CachingAllocator | NaiveAllocator) -> tuple[int, int, int, int]:
    return (
        allocator.allocated_bytes,
        allocator.reserved_bytes,
        allocator.peak_allocated_bytes,
        allocator.peak_reserved_bytes,
    )
