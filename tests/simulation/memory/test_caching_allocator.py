"""Replaying allocations and frees as torch's CUDA caching allocator carries them out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.caching_allocator import CachingAllocator, DeviceFullError

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
        segment, block = min(fits, key=lambda fit: fit[1].num_bytes)
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


@pytest.fixture
def allocator() -> CachingAllocator:
    return CachingAllocator()


@pytest.mark.parametrize(
    ("asked", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (511, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (1000 * 1000, 1_000_448, 2 * MIB),
        (MIB - 511, MIB, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        # Rounding comes first: the request is below 10 MiB, the rounded size isn't.
        (10 * MIB - 511, 10 * MIB, 10 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (12 * MIB, 12 * MIB, 12 * MIB),
        (1001 * MIB - 1, 1002 * MIB, 1002 * MIB),
    ],
)
def test_a_first_request_takes_a_block_and_a_segment_of_these_sizes(
    allocator: CachingAllocator, asked: int, allocated: int, reserved: int
) -> None:
    handle = allocator.allocate(asked)
    assert figures(allocator) == (allocated, reserved, allocated, reserved)
    assert allocator.size_of(handle) == allocated


def test_a_request_for_nothing_takes_nothing(allocator: CachingAllocator) -> None:
    handle = allocator.allocate(0)
    allocator.free(handle)
    allocator.free(handle)
    assert handle == 0
    assert allocator.size_of(handle) == 0
    assert figures(allocator) == (0, 0, 0, 0)
    assert allocator.allocate(1) != handle


def test_fewer_than_no_bytes_are_refused(allocator: CachingAllocator) -> None:
    with pytest.raises(ValueError, match="can't allocate -1 bytes"):
        allocator.allocate(-1)


def test_a_handle_is_good_until_it_is_freed(allocator: CachingAllocator) -> None:
    handle = allocator.allocate(1)
    allocator.free(handle)
    again = allocator.allocate(1)
    with pytest.raises(ValueError, match=f"no block in use has the handle {handle}"):
        allocator.free(handle)
    with pytest.raises(ValueError, match=f"no block in use has the handle {handle}"):
        allocator.size_of(handle)
    assert allocator.size_of(again) == 512
    assert allocator.allocated_bytes == 512


def test_small_requests_share_a_segment_until_it_is_full(allocator: CachingAllocator) -> None:
    for _ in range(2 * MIB // 512):
        allocator.allocate(512)
    assert figures(allocator) == (2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB)
    allocator.allocate(512)
    assert figures(allocator) == (2 * MIB + 512, 4 * MIB, 2 * MIB + 512, 4 * MIB)


def test_large_requests_share_a_segment_until_it_is_full(allocator: CachingAllocator) -> None:
    for _ in range(3):
        allocator.allocate(6 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (18 * MIB, 20 * MIB)
    # The 2 MiB left suffice for one MiB and a bit, which then takes them whole.
    handle = allocator.allocate(MIB + 1)
    assert allocator.size_of(handle) == 2 * MIB
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (20 * MIB, 20 * MIB)


def test_the_pools_don_t_serve_each_other(allocator: CachingAllocator) -> None:
    allocator.free(allocator.allocate(100 * MIB))
    allocator.allocate(MIB)
    assert allocator.reserved_bytes == 102 * MIB
    allocator.allocate(2 * MIB)
    assert allocator.reserved_bytes == 102 * MIB

    allocator = CachingAllocator()
    allocator.free(allocator.allocate(MIB))
    allocator.allocate(MIB + 1)
    assert allocator.reserved_bytes == 22 * MIB


def test_a_large_block_is_split_if_more_than_a_mebibyte_is_left(
    allocator: CachingAllocator,
) -> None:
    allocator.free(allocator.allocate(100 * MIB))
    whole = allocator.allocate(99 * MIB)
    assert allocator.size_of(whole) == 100 * MIB
    allocator.free(whole)
    assert allocator.size_of(allocator.allocate(99 * MIB - 512)) == 99 * MIB - 512
    assert allocator.size_of(allocator.allocate(MIB + 512)) == MIB + 512
    assert allocator.reserved_bytes == 100 * MIB


@pytest.mark.parametrize("taken_before_bytes", [0, 2**50])
def test_the_smallest_free_block_that_suffices_is_taken(
    allocator: CachingAllocator, taken_before_bytes: int
) -> None:
    allocator.allocate(taken_before_bytes)
    sizes = [40 * MIB, 30 * MIB, 20 * MIB]
    for handle in [allocator.allocate(size) for size in sizes]:
        allocator.free(handle)
    assert allocator.size_of(allocator.allocate(29 * MIB)) == 30 * MIB
    assert allocator.size_of(allocator.allocate(29 * MIB)) == 29 * MIB
    assert allocator.size_of(allocator.allocate(20 * MIB)) == 20 * MIB
    assert allocator.reserved_bytes == taken_before_bytes + 90 * MIB


def test_of_free_blocks_of_one_size_the_lowest_is_taken(allocator: CachingAllocator) -> None:
    """A quarter of each of two segments is free: the second segment, which lies lower, is used."""
    quarters = [allocator.allocate(MIB // 2) for _ in range(8)]
    allocator.free(quarters[6])
    allocator.free(quarters[3])
    allocator.allocate(MIB // 2)
    for place in (0, 1, 2):
        allocator.free(quarters[place])
    allocator.release_free_segments()
    assert allocator.reserved_bytes == 2 * MIB


def test_the_front_of_a_split_block_is_what_was_asked_for(allocator: CachingAllocator) -> None:
    """The first quarter of a segment has a lower address than the third, and is used again first."""
    quarters = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.free(quarters[2])
    allocator.free(quarters[0])
    allocator.allocate(5 * MIB)
    allocator.free(quarters[3])
    allocator.allocate(10 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (20 * MIB, 20 * MIB)


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_free_neighbours_become_one_block(
    allocator: CachingAllocator, order: tuple[int, ...]
) -> None:
    handles = [allocator.allocate(6 * MIB) for _ in range(3)]
    for place in order:
        allocator.free(handles[place])
    assert allocator.size_of(allocator.allocate(20 * MIB)) == 20 * MIB
    assert allocator.reserved_bytes == 20 * MIB


def test_blocks_of_two_segments_stay_apart(allocator: CachingAllocator) -> None:
    for handle in [allocator.allocate(20 * MIB) for _ in range(2)]:
        allocator.free(handle)
    allocator.allocate(40 * MIB)
    assert allocator.reserved_bytes == 80 * MIB


def test_segments_without_a_block_in_use_are_released(allocator: CachingAllocator) -> None:
    small, large = allocator.allocate(1), allocator.allocate(30 * MIB)
    allocator.allocate(5 * MIB)
    allocator.free(small)
    allocator.free(large)
    allocator.release_free_segments()
    assert figures(allocator) == (5 * MIB, 20 * MIB, 35 * MIB + 512, 52 * MIB)
    allocator.allocate(1)
    assert allocator.reserved_bytes == 22 * MIB


@pytest.mark.parametrize("kept", range(3))
def test_a_segment_with_a_block_in_use_is_kept(allocator: CachingAllocator, kept: int) -> None:
    blocks = [allocator.allocate(size) for size in (8 * MIB, 8 * MIB, 4 * MIB)]
    for handle in blocks[:kept] + blocks[kept + 1 :]:
        allocator.free(handle)
    allocator.release_free_segments()
    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(blocks[kept])
    allocator.release_free_segments()
    assert allocator.reserved_bytes == 0


def test_peaks_stay_until_they_are_reset(allocator: CachingAllocator) -> None:
    kept = allocator.allocate(50 * MIB)
    allocator.free(allocator.allocate(30 * MIB))
    allocator.release_free_segments()
    assert figures(allocator) == (50 * MIB, 50 * MIB, 80 * MIB, 80 * MIB)
    allocator.reset_peaks()
    assert figures(allocator) == (50 * MIB, 50 * MIB, 50 * MIB, 50 * MIB)
    allocator.free(kept)
    assert figures(allocator) == (0, 50 * MIB, 50 * MIB, 50 * MIB)


SIZES = st.one_of(
    st.integers(min_value=1, max_value=3 * MIB),
    st.integers(min_value=MIB, max_value=24 * MIB),
    st.sampled_from([512, 4096, MIB // 2, MIB, MIB + 1, 2 * MIB, 5 * MIB, 10 * MIB, 20 * MIB]),
    st.integers(min_value=0, max_value=12 * MIB // 512).map(lambda units: units * 512 + 1),
)


@given(st.data())
def test_every_sequence_takes_what_it_takes_without_an_index(data: st.DataObject) -> None:
    """Frees are as likely as allocations, so blocks are split, merged and used again."""
    allocator, naive = CachingAllocator(), NaiveAllocator()
    handles: list[int] = []
    kinds = st.sampled_from(["allocate"] * 5 + ["free"] * 4 + ["release", "reset"])
    events = data.draw(st.lists(kinds, min_size=20, max_size=50))
    for event in events:
        if event == "allocate":
            num_bytes = data.draw(SIZES)
            handles.append(allocator.allocate(num_bytes))
            naive.allocate(num_bytes, user=handles[-1])
        elif event == "free" and handles:
            place = data.draw(st.integers(min_value=0, max_value=len(handles) - 1))
            handle = handles.pop(place)
            allocator.free(handle)
            naive.free(handle)
        elif event == "release":
            allocator.release_free_segments()
            naive.release_free_segments()
        elif event == "reset":
            allocator.reset_peaks()
            naive.reset_peaks()
        assert figures(allocator) == figures(naive)
        assert [allocator.size_of(handle) for handle in handles] == [
            naive.size_of(handle) for handle in handles
        ]


@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=1, max_value=40))
def test_long_replays_take_what_they_take_without_an_index(seed: int, most_in_use: int) -> None:
    chance = random.Random(seed)
    allocator, naive = CachingAllocator(), NaiveAllocator()
    handles: list[int] = []
    for _ in range(200):
        if len(handles) < most_in_use and chance.random() < 0.6:
            num_bytes = int(2 ** chance.uniform(0, 25))
            handles.append(allocator.allocate(num_bytes))
            naive.allocate(num_bytes, user=handles[-1])
        elif handles:
            handle = handles.pop(chance.randrange(len(handles)))
            allocator.free(handle)
            naive.free(handle)
        assert figures(allocator) == figures(naive)
    assert allocator.allocated_bytes == sum(map(allocator.size_of, handles))


@given(st.data(), st.integers(min_value=2, max_value=120))
def test_every_sequence_runs_full_when_it_does_without_an_index(
    data: st.DataObject, capacity_mib: int
) -> None:
    capacity_bytes = capacity_mib * MIB
    allocator = CachingAllocator(capacity_bytes=capacity_bytes)
    naive = NaiveAllocator(capacity_bytes=capacity_bytes)
    handles: list[int] = []
    for event in data.draw(st.lists(st.sampled_from(["allocate"] * 4 + ["free"] * 3), min_size=20)):
        if event == "allocate":
            num_bytes = data.draw(SIZES)
            try:
                handle = allocator.allocate(num_bytes)
            except DeviceFullError:
                with pytest.raises(MemoryError):
                    naive.allocate(num_bytes, user=0)
            else:
                handles.append(handle)
                naive.allocate(num_bytes, user=handle)
        elif handles:
            handle = handles.pop(data.draw(st.integers(0, len(handles) - 1)))
            allocator.free(handle)
            naive.free(handle)
        assert figures(allocator) == figures(naive)
        assert allocator.reserved_bytes <= capacity_bytes


def test_a_full_device_gets_every_free_segment_back_and_is_asked_again() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    small, large = allocator.allocate(1), allocator.allocate(30 * MIB)
    kept = allocator.allocate(40 * MIB)
    allocator.free(small)
    allocator.free(large)
    # Neither of them has room for 50, both have to go.
    allocator.allocate(50 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (90 * MIB, 90 * MIB)
    assert allocator.num_retries == 1
    assert allocator.size_of(kept) == 40 * MIB


def test_free_blocks_of_segments_in_use_are_of_no_help_to_a_full_device() -> None:
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    front, back = allocator.allocate(40 * MIB), allocator.allocate(20 * MIB)
    allocator.free(front)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (20 * MIB, 60 * MIB)
    with pytest.raises(DeviceFullError):
        allocator.allocate(50 * MIB)
    allocator.free(back)
    allocator.allocate(50 * MIB)


def test_the_last_byte_of_a_device_can_be_taken() -> None:
    allocator = CachingAllocator(capacity_bytes=22 * MIB)
    allocator.allocate(1)
    allocator.allocate(20 * MIB)
    with pytest.raises(DeviceFullError):
        allocator.allocate(2 * MIB)
    assert (allocator.reserved_bytes, allocator.num_retries) == (22 * MIB, 1)


def test_a_device_without_a_capacity_never_runs_full() -> None:
    allocator = CachingAllocator()
    for _ in range(3):
        allocator.allocate(2**50)
    assert (allocator.reserved_bytes, allocator.num_retries) == (3 * 2**50, 0)


def test_a_device_is_restricted_to_what_is_in_use() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(50 * MIB))
    allocator.allocate(30 * MIB)
    allocator.restrict(60 * MIB)
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes) == (50 * MIB, 50 * MIB)
    with pytest.raises(DeviceFullError):
        allocator.restrict(49 * MIB)
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(50 * MIB))
    allocator.restrict(10 * MIB)
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes) == (0, 10 * MIB)


@given(st.lists(SIZES), st.randoms(use_true_random=False))
def test_nothing_is_left_once_everything_is_freed_and_released(
    sizes: list[int], chance: random.Random
) -> None:
    allocator = CachingAllocator()
    handles = [allocator.allocate(size) for size in sizes]
    in_use = sum(map(allocator.size_of, handles))
    assert sum(sizes) <= in_use == allocator.allocated_bytes <= allocator.reserved_bytes
    chance.shuffle(handles)
    for handle in handles:
        allocator.free(handle)
    assert allocator.allocated_bytes == 0
    allocator.release_free_segments()
    assert allocator.reserved_bytes == 0
    assert allocator.peak_allocated_bytes == in_use
