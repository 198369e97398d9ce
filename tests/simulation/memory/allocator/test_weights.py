"""Weights on a device, compared with those that are allocated one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator, DeviceFullError
from moetool.simulation.memory.allocator.weights import ReservedAtOnce, allocate_weights
from tests.simulation.memory.allocator.naive_allocator import MIB, figures

SIZES = st.lists(
    st.sampled_from([0, 8, 600, 5000, MIB, MIB + 1, 3 * MIB, 12 * MIB, 31 * MIB]), max_size=12
)


def allocate_one_by_one(
    weight_bytes: list[int], *, capacity_bytes: int | None
) -> CachingAllocator | None:
    """Return an allocator after loading; None if the weights don't fit."""
    allocator = CachingAllocator(capacity_bytes=capacity_bytes)
    try:
        for num_bytes in weight_bytes:
            allocator.allocate(num_bytes)
    except DeviceFullError:
        return None
    allocator.release_free_segments()
    allocator.reset_peaks()
    return allocator


@given(SIZES, SIZES, st.none() | st.integers(2, 200))
def test_runs_after_them_take_what_they_take_otherwise(
    weight_bytes: list[int], later_bytes: list[int], capacity_mib: int | None
) -> None:
    """Twice, because the first run must not change what the second begins with."""
    capacity_bytes = None if capacity_mib is None else capacity_mib * MIB
    for _ in range(2):
        expected = allocate_one_by_one(weight_bytes, capacity_bytes=capacity_bytes)
        try:
            found = allocate_weights(weight_bytes, capacity_bytes=capacity_bytes)
        except DeviceFullError:
            assert expected is None
            return
        assert expected is not None
        for num_bytes in later_bytes:
            assert figures(found) == figures(expected)
            handles: list[int | None] = []
            for allocator in (found, expected):
                try:
                    handles.append(allocator.allocate(num_bytes))
                except DeviceFullError:
                    handles.append(None)
            if None in handles:
                assert handles == [None, None]
                break
            if num_bytes > MIB:
                for allocator, handle in zip((found, expected), handles, strict=True):
                    assert handle is not None
                    allocator.free(handle)
            assert figures(found) == figures(expected)


def test_weights_whose_memory_was_reserved_at_once_lie_without_gaps() -> None:
    sizes = [11 * MIB, 5000, 23 * MIB, 12 * MIB, 600]
    together = 46 * MIB + 5120 + 1024
    found = allocate_weights(ReservedAtOnce(sizes))
    assert found.allocated_bytes == together
    # Alone, a block of 11 MiB gets a segment of 12, whose rest is too small to be another one.
    assert allocate_weights(sizes).allocated_bytes == together + 2 * MIB
    limited = allocate_weights(ReservedAtOnce(sizes), capacity_bytes=50 * MIB)
    assert limited.allocated_bytes == together
    assert limited.peak_reserved_bytes <= 50 * MIB


@given(SIZES)
def test_memory_that_suffices_for_all_is_reserved_once(weight_bytes: list[int]) -> None:
    found = allocate_weights(ReservedAtOnce(weight_bytes))
    rounded = sum(-(-num_bytes // 512) * 512 for num_bytes in weight_bytes)
    # The last block takes the rest if that is too small for another one.
    assert rounded <= found.allocated_bytes <= rounded + MIB
