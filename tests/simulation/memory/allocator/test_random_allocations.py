"""Random requests are answered as by an allocator without an index."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator, DeviceFullError
from tests.simulation.memory.allocator.naive_allocator import MIB, NaiveAllocator, figures

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
