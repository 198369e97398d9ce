"""Timelines worked out by hand, replayed as torch's allocator would carry them out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.timeline import AllocatedParts
from tests.simulation.memory.memory_runs import make_timeline

MIB = 2**20

# The cache, something that passes, the workspace, and something that stays.
PREFILL = [(0, 600), (1, 100), (2, 8 * MIB), (1, -1), (3, 2000)]
# The cache moves to a larger block.
DECODE = [(4, 1100), (0, -1), (5, 1), (5, -1), (6, 1)]
CACHE = [{0: 600}, {4: 1100}]


def test_a_generation_is_told_by_what_is_allocated_at_its_peaks() -> None:
    timeline = make_timeline(PREFILL + DECODE, call_ends=[5, 10], cache=CACHE, workspace_block=2)
    profile = replay_timeline(timeline, weight_bytes=[1000, 3 * MIB])
    weights = 1024 + 3 * MIB
    assert profile.weights_bytes == weights
    assert profile.cache_bytes == 1100
    assert profile.prefill.parts == AllocatedParts(
        weights_bytes=weights, cache_bytes=1024, activation_bytes=2048, workspace_bytes=8 * MIB
    )
    assert profile.prefill.origin.operation == "operation 4"
    # For a moment there are two caches.
    assert profile.decode is not None
    assert profile.decode.parts == AllocatedParts(
        weights_bytes=weights,
        cache_bytes=1024 + 1536,
        activation_bytes=2048,
        workspace_bytes=8 * MIB,
    )
    assert profile.decode.origin.operation == "operation 5"
    assert profile.decode.parts.allocated_bytes == weights + 2560 + 2048 + 8 * MIB
    assert profile.peak_allocated_bytes == profile.decode.parts.allocated_bytes
    # The small pool's segment, and one of 20 MiB for 3 and 8 MiB.
    assert profile.peak_reserved_bytes == 22 * MIB


def test_both_workspaces_are_told_apart_from_what_comes_and_goes() -> None:
    events = [(0, 8 * MIB), (1, MIB), (2, 512)]
    timeline = make_timeline(events, call_ends=[3], cache=[{}], workspace_block=0)
    timeline = dataclasses.replace(timeline, lt_workspace_block=1)
    parts = replay_timeline(timeline, weight_bytes=[]).prefill.parts
    assert (parts.workspace_bytes, parts.activation_bytes) == (9 * MIB, 512)


def test_a_peak_of_the_prompt_stays_the_run_s() -> None:
    events = [(0, 50 * MIB), (0, -1), (1, 512), (2, 1024)]
    timeline = make_timeline(events, call_ends=[2, 4], cache=[{}, {2: 1024}])
    profile = replay_timeline(timeline, weight_bytes=[])
    assert profile.prefill.parts.allocated_bytes == 50 * MIB
    assert profile.decode is not None
    assert profile.decode.parts == AllocatedParts(
        weights_bytes=0, cache_bytes=1024, activation_bytes=512, workspace_bytes=0
    )
    assert profile.peak_allocated_bytes == 50 * MIB
    assert profile.peak_reserved_bytes == 52 * MIB


# The freed blocks of the prompt's call are too small for the next one, which asks for more at once.
GROWING = [(0, 30 * MIB), (0, -1), (1, 40 * MIB), (1, -1)]


def test_a_run_fits_in_less_than_it_would_take() -> None:
    timeline = make_timeline(GROWING, call_ends=[2, 4], cache=[{}, {}])
    in_full, limited = (
        replay_timeline(timeline, weight_bytes=[20 * MIB], capacity_bytes=capacity_bytes)
        for capacity_bytes in (None, 60 * MIB)
    )
    assert in_full.peak_reserved_bytes == 90 * MIB
    assert limited == dataclasses.replace(in_full, peak_reserved_bytes=60 * MIB)
    with pytest.raises(DeviceFullError):
        replay_timeline(timeline, weight_bytes=[20 * MIB], capacity_bytes=60 * MIB - 1)


def test_a_run_does_not_fit_where_free_memory_lies_between_blocks_in_use() -> None:
    events = [(0, 60 * MIB), (0, -1), (1, 30 * MIB), (2, 30 * MIB), (1, -1), (3, 40 * MIB)]
    timeline = make_timeline(events, call_ends=[6], cache=[{}])
    profile = replay_timeline(timeline, weight_bytes=[])
    assert (profile.peak_allocated_bytes, profile.peak_reserved_bytes) == (70 * MIB, 100 * MIB)
    with pytest.raises(DeviceFullError):
        replay_timeline(timeline, weight_bytes=[], capacity_bytes=100 * MIB - 1)


def test_weights_that_are_too_large_do_not_fit() -> None:
    timeline = make_timeline([(0, 1)], call_ends=[1], cache=[{}])
    with pytest.raises(DeviceFullError):
        replay_timeline(timeline, weight_bytes=[20 * MIB] * 3, capacity_bytes=59 * MIB)


def test_a_prompt_that_is_not_limited_may_take_more_than_its_steps() -> None:
    events = [(0, 90 * MIB), (0, -1), (1, 30 * MIB), (1, -1)]
    timeline = make_timeline(events, call_ends=[2, 4], cache=[{}, {}])
    profile = replay_timeline(
        timeline, weight_bytes=[20 * MIB], capacity_bytes=50 * MIB, is_prompt_limited=False
    )
    assert profile.decode is not None
    assert profile.decode.parts.allocated_bytes == 50 * MIB
    with pytest.raises(DeviceFullError):
        replay_timeline(timeline, weight_bytes=[20 * MIB], capacity_bytes=50 * MIB)
    with pytest.raises(DeviceFullError):
        replay_timeline(
            timeline, weight_bytes=[20 * MIB], capacity_bytes=49 * MIB, is_prompt_limited=False
        )


def test_one_call_has_no_decoding() -> None:
    timeline = make_timeline([(0, 1)], call_ends=[1], cache=[{}])
    profile = replay_timeline(timeline, weight_bytes=[1])
    assert profile.decode is None
    assert profile.cache_bytes == 0
    assert profile.peak_allocated_bytes == 1024


def test_what_happens_after_the_first_call_and_before_the_second_is_prefill() -> None:
    timeline = make_timeline([(0, 1), (1, 1), (0, -1)], call_ends=[1, 3], cache=[{0: 1}, {}])
    second = dataclasses.replace(timeline.calls[1], first_event=2)
    timeline = dataclasses.replace(timeline, calls=(timeline.calls[0], second))
    profile = replay_timeline(timeline, weight_bytes=[])
    assert profile.prefill.parts.allocated_bytes == 1024
    # Nothing is born in it.
    assert profile.decode is None


def test_a_cache_that_is_gone_counts_no_more() -> None:
    timeline = make_timeline([(0, 512), (0, -1), (1, 2048)], call_ends=[1, 3], cache=[{0: 512}, {}])
    profile = replay_timeline(timeline, weight_bytes=[])
    assert profile.decode is not None
    assert profile.decode.parts.cache_bytes == 0
    assert profile.decode.parts.activation_bytes == 2048


def test_the_first_moment_of_the_most_is_the_peak() -> None:
    events = [(0, 512), (0, -1), (1, 512)]
    timeline = make_timeline(events, call_ends=[3], cache=[{}])
    assert replay_timeline(timeline, weight_bytes=[]).prefill.origin.operation == "operation 0"


def test_a_block_is_the_cache_s_from_its_birth_on_if_it_is_so_after_any_call() -> None:
    events = [(0, 512), (1, 512), (2, 512), (0, -1)]
    timeline = make_timeline(events, call_ends=[2, 4], cache=[{}, {1: 512, 2: 512}])
    profile = replay_timeline(timeline, weight_bytes=[])
    assert profile.prefill.parts.cache_bytes == 512
    assert profile.decode is not None
    assert profile.decode.parts.cache_bytes == 1024


def test_a_block_handed_out_whole_counts_whole() -> None:
    """A request for more than 1 MiB gets all of the 1.5 MiB that are left of a 20 MiB segment."""
    events = [(0, 9 * MIB + MIB // 2), (1, 9 * MIB), (2, MIB + 1)]
    timeline = make_timeline(events, call_ends=[3], cache=[{2: MIB + 1}])
    parts = replay_timeline(timeline, weight_bytes=[]).prefill.parts
    assert parts.cache_bytes == MIB + MIB // 2
    assert parts.activation_bytes == 18 * MIB + MIB // 2


def test_parts_sum_to_what_is_allocated() -> None:
    parts = AllocatedParts(
        weights_bytes=1, cache_bytes=20, activation_bytes=300, workspace_bytes=4000
    )
    assert parts.allocated_bytes == 4321


def test_each_storage_of_a_model_counts_once_in_the_order_of_its_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 3)
            self.second = nn.Linear(2, 3, dtype=torch.bfloat16)
            self.tied = nn.Linear(2, 3, bias=False)
            self.tied.weight = self.first.weight
            self.register_buffer("mask", torch.empty(5, dtype=torch.bool))
            self.register_buffer("nothing", None)

    for device in ("cpu", "meta"):
        with torch.device(device):
            model = Tied()
        assert list_weight_bytes(model) == [5, 24, 12, 12, 6]


@pytest.mark.parametrize("num_unused", [1, 3])
def test_storages_count_whole(num_unused: int) -> None:
    model = nn.Module()
    model.register_buffer("part", torch.empty(4 + num_unused)[:4])
    assert list_weight_bytes(model) == [4 * (4 + num_unused)]
