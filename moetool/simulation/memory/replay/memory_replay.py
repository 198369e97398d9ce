"""Replay a timeline through torch's allocator to get the figures that a GPU's tools would show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator, DeviceFullError
from moetool.simulation.memory.allocator.weights import allocate_weights
from moetool.simulation.memory.steps.event_table import EventTable
from moetool.simulation.memory.steps.step_replay import replay_steps
from moetool.simulation.memory.steps.unrolled_loops import Placement, unroll, unroll_whole
from moetool.simulation.memory.timeline import AllocatedParts, Origin, Timeline

# Collectives whose results are allocated; an all-reduce in place takes nothing.
_COLLECTIVES = frozenset(
    {"all_gather_into_tensor", "all_reduce", "all_to_all_single", "reduce_scatter_tensor"}
)


@dataclass(frozen=True)
class PhasePeak:
    """The moment of a phase at which the most memory is allocated.

    Attributes:
        parts: The memory allocated then.
        origin: The place of the allocation that reached the peak.
    """

    parts: AllocatedParts
    origin: Origin


@dataclass(frozen=True)
class MemoryProfile:
    """The memory that a run takes.

    Attributes:
        weights_bytes: Parameters and buffers as the allocator holds them.
        cache_bytes: The cache after the last call.
        peak_allocated_bytes: `torch.cuda.max_memory_allocated`.
        peak_reserved_bytes: `torch.cuda.max_memory_reserved`.
        prefill: The peak before the second call.
        decode: The peak from the second call on; None if there is only one call.
        prefill_reserved_bytes: The most memory reserved before the second call.
        prompt_cache_bytes: The cache after the first call, or after the last if that is smaller.
        communication_bytes: The most that results of collectives hold at once.
        training_phases: The peak of each phase of a step of training, by its name; else empty.
        host_cache_bytes: The part of the cache in the host's memory after the last call.
    """

    weights_bytes: int
    cache_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    prefill: PhasePeak
    decode: PhasePeak | None
    prefill_reserved_bytes: int
    prompt_cache_bytes: int
    communication_bytes: int = 0
    training_phases: Mapping[str, PhasePeak] = field(default_factory=dict)
    host_cache_bytes: int = 0


def replay_timeline(
    timeline: Timeline,
    *,
    weight_bytes: Sequence[int],
    capacity_bytes: int | None = None,
    is_prompt_limited: bool = True,
    is_reserve_followed: bool = True,
) -> MemoryProfile:
    """Return the memory that a run takes on a GPU that holds nothing else.

    After the weights (`allocate_weights`), the run's blocks are allocated and freed.

    Args:
        timeline: The run.
        weight_bytes: Sizes of the model's storages.
        capacity_bytes: Memory of the GPU that torch's allocator may reserve; None for no limit.
        is_prompt_limited: Whether the limit holds for the prompt's call as well.
        is_reserve_followed: Whether the reserved bytes are needed. Without them, and without a limit,
            small blocks are counted and not placed, which takes less time; the profile's reserved
            bytes are then too low.

    Raises:
        DeviceFullError: The run doesn't fit within the limit.
    """
    replay = partial(
        _replay,
        weight_bytes=weight_bytes,
        capacity_bytes=capacity_bytes,
        is_prompt_limited=is_prompt_limited,
        is_reserve_followed=is_reserve_followed,
    )
    if not timeline.loops:
        return replay(timeline)
    unrolled = unroll(timeline)
    placement = Placement.of(unrolled.timeline)
    try:
        profile = replay(unrolled.timeline, placement=placement)
    except DeviceFullError:
        if unrolled.is_like_whole(placement):
            raise
    else:
        if unrolled.is_like_whole(placement):
            return profile
    return replay(unroll_whole(timeline))


def _replay(
    timeline: Timeline,
    *,
    weight_bytes: Sequence[int],
    capacity_bytes: int | None,
    is_prompt_limited: bool,
    is_reserve_followed: bool,
    placement: Placement | None = None,
) -> MemoryProfile:
    """Return the memory that a run takes whose events are all there."""
    allocator = allocate_weights(
        weight_bytes, capacity_bytes=capacity_bytes if is_prompt_limited else None
    )
    weights_bytes = allocator.allocated_bytes
    in_cache = frozenset[int]().union(*(call.cache_blocks for call in timeline.calls))
    end_of_prefill = timeline.calls[1].first_event if len(timeline.calls) > 1 else None
    if capacity_bytes is None:
        endless = _EndlessReplay(
            allocator,
            timeline,
            in_cache=in_cache,
            is_reserve_followed=is_reserve_followed,
            placement=placement,
        )
        prefill = endless.find_peak(0, end_of_prefill)
        prefill_reserved_bytes = endless.prefill_reserved_bytes
        decode = None if end_of_prefill is None else endless.find_peak(end_of_prefill, None)
    else:
        meter = _Meter(
            allocator, timeline, in_cache=in_cache, weights_bytes=weights_bytes, placement=placement
        )
        prefill = meter.run(0, end_of_prefill)
        if not is_prompt_limited:
            allocator.restrict(capacity_bytes)
        prefill_reserved_bytes = allocator.peak_reserved_bytes
        decode = None if end_of_prefill is None else meter.run(end_of_prefill, None)
    assert prefill is not None
    peaks = [peak.parts.above_weights_bytes for peak in (prefill, decode) if peak is not None]
    return MemoryProfile(
        weights_bytes=weights_bytes,
        cache_bytes=timeline.calls[-1].cache_bytes,
        peak_allocated_bytes=weights_bytes + max(peaks),
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        prefill=prefill,
        decode=decode,
        prefill_reserved_bytes=prefill_reserved_bytes,
        prompt_cache_bytes=min(timeline.calls[0].cache_bytes, timeline.calls[-1].cache_bytes),
        communication_bytes=_count_communication(timeline),
        host_cache_bytes=timeline.calls[-1].host_cache_bytes,
    )


def _count_communication(timeline: Timeline) -> int:
    """Return the most bytes that results of collectives hold at once."""
    collectives = {
        number for number, origin in enumerate(timeline.origins) if origin.operation in _COLLECTIVES
    }
    if not collectives:
        return 0
    held: dict[int, int] = {}
    now = most = 0
    for block, num_bytes, origin in timeline.events:
        if num_bytes < 0:
            now -= held.pop(block, 0)
        elif origin in collectives:
            held[block] = num_bytes
            now += num_bytes
            most = max(most, now)
    return most


class _Meter:
    """Replays stretches of a timeline, event by event, and finds the peak of each."""

    def __init__(
        self,
        allocator: CachingAllocator,
        timeline: Timeline,
        *,
        in_cache: frozenset[int],
        weights_bytes: int,
        placement: Placement | None,
    ) -> None:
        self._placement = placement
        self._allocator = allocator
        self._timeline = timeline
        self._in_cache = in_cache
        self._weights_bytes = weights_bytes
        self._handles: dict[int, int] = {}
        self._cache_bytes = 0
        self._workspace_bytes = 0

    def run(self, start: int, end: int | None) -> PhasePeak | None:
        """Replay the events from `start` to `end` and return their peak."""
        allocator, handles, in_cache = self._allocator, self._handles, self._in_cache
        origins, workspaces = self._timeline.origins, _find_workspaces(self._timeline)
        placement = self._placement
        most, parts, at = -1, None, -1
        for block, num_bytes, origin in self._timeline.events[start:end]:
            if num_bytes < 0:
                handle = handles.pop(block)
                if block in in_cache:
                    self._cache_bytes -= allocator.size_of(handle)
                allocator.free(handle)
                continue
            handle = handles[block] = allocator.allocate(
                num_bytes, is_on_side=origins[origin].is_on_side
            )
            if placement is not None:
                placement.addresses[block] = allocator.address_of(handle)
                placement.num_bytes[block] = allocator.size_of(handle)
            if block in in_cache:
                self._cache_bytes += allocator.size_of(handle)
            elif block in workspaces:
                self._workspace_bytes += allocator.size_of(handle)
            if allocator.allocated_bytes > most:
                most = allocator.allocated_bytes
                parts, at = (self._cache_bytes, self._workspace_bytes), origin
        if parts is None:
            return None
        return _make_peak(most, self._weights_bytes, *parts, origin=origins[at])


class _EndlessReplay:
    """A timeline replayed on a device that never runs full, pool by pool.

    Attributes:
        prefill_reserved_bytes: The memory reserved after the first call.
    """

    def __init__(
        self,
        allocator: CachingAllocator,
        timeline: Timeline,
        *,
        in_cache: frozenset[int],
        is_reserve_followed: bool,
        placement: Placement | None,
    ) -> None:
        self._weights_bytes = allocator.allocated_bytes
        self._timeline = timeline
        self._in_cache = in_cache
        self._events = EventTable.of(timeline.events)
        replayed = replay_steps(
            self._events,
            [0, *(call.first_event for call in timeline.calls[1:])],
            allocator=allocator,
            origins=timeline.origins,
            is_reserve_followed=is_reserve_followed,
            placement=placement,
        )
        self._changes = replayed.changes
        self._allocated_bytes = self._weights_bytes + np.cumsum(replayed.changes)
        self.prefill_reserved_bytes = replayed.reserved_bytes[0]

    def find_peak(self, start: int, end: int | None) -> PhasePeak | None:
        """Return the peak of the events from `start` to `end`; None without a birth."""
        births = start + np.flatnonzero(self._events.num_bytes[start:end] >= 0)
        if not len(births):
            return None
        at = int(births[np.argmax(self._allocated_bytes[births])])
        return _make_peak(
            int(self._allocated_bytes[at]),
            self._weights_bytes,
            self._sum_until(at, self._in_cache),
            self._sum_until(at, _find_workspaces(self._timeline)),
            origin=self._timeline.origins[int(self._events.origins[at])],
        )

    def _sum_until(self, at: int, blocks: Collection[int]) -> int:
        """Return how much of some blocks is allocated after an event."""
        are_of_blocks = np.isin(self._events.blocks[: at + 1], [*blocks])
        return int(self._changes[: at + 1][are_of_blocks].sum())


def _find_workspaces(timeline: Timeline) -> set[int]:
    """Return the blocks that libraries keep for matrix products."""
    found = (timeline.workspace_block, timeline.lt_workspace_block)
    return {block for block in found if block is not None}


def _make_peak(
    allocated_bytes: int,
    weights_bytes: int,
    cache_bytes: int,
    workspace_bytes: int,
    *,
    origin: Origin,
) -> PhasePeak:
    return PhasePeak(
        AllocatedParts(
            weights_bytes=weights_bytes,
            cache_bytes=cache_bytes,
            activation_bytes=allocated_bytes - weights_bytes - cache_bytes - workspace_bytes,
            workspace_bytes=workspace_bytes,
        ),
        origin,
    )
