"""Replay a timeline through torch's allocator to get the figures that a GPU's tools would show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator, DeviceFullError
from moetool.simulation.memory.allocator.pools import Pool, choose_pool, round_up
from moetool.simulation.memory.allocator.weights import allocate_weights
from moetool.simulation.memory.steps.event_table import EventTable, Numbers
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
        num_retries: Number of times that the device was full and segments were given back.
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
    num_retries: int = field(default=0, compare=False)


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
    unrolled = unroll(timeline)
    if not unrolled.stretches:
        return replay(unrolled.timeline)
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
    events = EventTable.of(timeline.events)
    end_of_prefill = timeline.calls[1].first_event if len(timeline.calls) > 1 else None
    if capacity_bytes is None:
        replayed = replay_steps(
            events,
            [0, *(call.first_event for call in timeline.calls[1:])],
            allocator=allocator,
            origins=timeline.origins,
            is_reserve_followed=is_reserve_followed,
            placement=placement,
        )
        prefill_reserved_bytes, changes = replayed.reserved_bytes[0], replayed.changes
    else:
        replay = _LimitedReplay(allocator, events, origins=timeline.origins, placement=placement)
        replay.run(end_of_prefill)
        if not is_prompt_limited:
            allocator.restrict(capacity_bytes)
        prefill_reserved_bytes = allocator.peak_reserved_bytes
        if end_of_prefill is not None:
            replay.run(None)
        changes = np.array(replay.changes, np.int64)
    course = _Course(timeline, events, changes, weights_bytes=weights_bytes)
    prefill = course.find_peak(0, end_of_prefill)
    decode = None if end_of_prefill is None else course.find_peak(end_of_prefill, None)
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
        num_retries=allocator.num_retries,
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


class _LimitedReplay:
    """Replays a timeline, event by event, on a device that may run full.

    Attributes:
        changes: For each event until now, by how much the allocated bytes grow.
    """

    def __init__(
        self,
        allocator: CachingAllocator,
        events: EventTable,
        *,
        origins: Sequence[Origin],
        placement: Placement | None,
    ) -> None:
        self._allocator = allocator
        self._events = events
        # Deaths need 0 bytes as well.
        self._needed_bytes = round_up(events.num_bytes)
        are_on_side = np.array([origin.is_on_side for origin in origins], np.bool_)
        self._pools = choose_pool(self._needed_bytes, is_on_side=are_on_side[events.origins])
        self._placement = placement
        # The pool and the address of each block that took bytes.
        self._places: dict[int, tuple[Pool, int]] = {}
        self.changes: list[int] = []

    def run(self, end: int | None) -> None:
        """Replay the events from the first one that has not been replayed to `end`."""
        stretch = slice(len(self.changes), end)
        columns = self._events.blocks, self._needed_bytes, self._pools
        try:
            self._carry_out(*(column[stretch].tolist() for column in columns))
        finally:
            if self._placement is not None:
                self._tell(self._placement)

    def _carry_out(
        self, blocks: Sequence[int], needed_bytes: Sequence[int], pools: Sequence[int]
    ) -> None:
        allocator, places, changes = self._allocator, self._places, self.changes
        for block, num_bytes, index in zip(blocks, needed_bytes, pools, strict=True):
            if num_bytes:
                pool = allocator.pools[index]
                address = pool.take(num_bytes)
                if address is None:
                    address = allocator.take_from_device(num_bytes, pool)
                places[block] = pool, address
                changes.append(pool.used[address])
            elif block in places:
                pool, address = places[block]
                changes.append(-pool.give_back(address))
            else:
                changes.append(0)

    def _tell(self, placement: Placement) -> None:
        """Set the places of all blocks until now."""
        events = self._events[: len(self.changes)]
        are_births = events.num_bytes >= 0
        blocks = events.blocks[are_births]
        nowhere = None, 0
        placement.addresses[blocks] = [
            self._places.get(block, nowhere)[1] for block in blocks.tolist()
        ]
        placement.num_bytes[blocks] = np.array(self.changes, np.int64)[are_births]


class _Course:
    """The course of what is allocated during a timeline.

    Args:
        changes: For each event, by how much the allocated bytes grow.
        weights_bytes: The bytes allocated before.
    """

    def __init__(
        self, timeline: Timeline, events: EventTable, changes: Numbers, *, weights_bytes: int
    ) -> None:
        self._timeline = timeline
        self._events = events
        self._changes = changes
        self._weights_bytes = weights_bytes
        self._allocated_bytes = weights_bytes + np.cumsum(changes)
        self._in_cache = frozenset[int]().union(*(call.cache_blocks for call in timeline.calls))

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
