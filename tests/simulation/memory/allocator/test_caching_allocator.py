"""Replaying allocations and frees as torch's CUDA caching allocator carries them out."""

from __future__ import annotations

import pytest

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator, DeviceFullError
from tests.simulation.memory.allocator.naive_allocator import MIB, figures


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
