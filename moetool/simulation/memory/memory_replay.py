"""Replay a timeline through torch's allocator to get the figures that a GPU's tools would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator
from moetool.simulation.memory.steps.event_table import EventTable
from moetool.simulation.memory.steps.step_replay import replay_steps
from moetool.simulation.memory.timeline import AllocatedParts, Origin, Timeline
from moetool.simulation.meta.dispatch import find_local

# Collectives whose results are allocated; an all-reduce in place takes nothing.
_COLLECTIVES = frozenset(
    {"all_gather_into_tensor", "all_reduce", "all_to_all_single", "reduce_scatter_tensor"}
)
# With fewer calls, hardly a step does the same as the one before.
_FEWEST_CALLS = 8


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


def list_weight_bytes(model: nn.Module) -> list[int]:
    """Return the size of each storage of parameters and buffers, in the order of the modules."""
    sizes: dict[int, int] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    storage = find_local(tensor).untyped_storage()
                    sizes.setdefault(storage._cdata, storage.nbytes())
    return list(sizes.values())


def replay_timeline(
    timeline: Timeline,
    *,
    weight_bytes: Sequence[int],
    capacity_bytes: int | None = None,
    is_prompt_limited: bool = True,
) -> MemoryProfile:
    """Return the memory that a run takes on a GPU that holds nothing else.

    Weights are allocated one after another, unused memory reserved for loading them is released, and
    then the run's blocks are allocated and freed.

    Args:
        timeline: The run.
        weight_bytes: Sizes of the model's storages.
        capacity_bytes: Memory of the GPU that torch's allocator may reserve; None for no limit.
        is_prompt_limited: Whether the limit holds for the prompt's call as well.

    Raises:
        DeviceFullError: The run doesn't fit within the limit.
    """
    allocator = CachingAllocator(capacity_bytes=capacity_bytes if is_prompt_limited else None)
    for num_bytes in weight_bytes:
        allocator.allocate(num_bytes)
    allocator.release_free_segments()
    allocator.reset_peaks()
    weights_bytes = allocator.allocated_bytes
    in_cache = frozenset[int]().union(*(call.cache_blocks for call in timeline.calls))
    end_of_prefill = timeline.calls[1].first_event if len(timeline.calls) > 1 else None
    meter = _Meter(allocator, timeline, in_cache=in_cache, weights_bytes=weights_bytes)
    prefill = meter.run(0, end_of_prefill)
    assert prefill is not None
    if capacity_bytes is not None and not is_prompt_limited:
        allocator.restrict(capacity_bytes)
    prefill_reserved_bytes = allocator.peak_reserved_bytes
    decode = None
    if end_of_prefill is not None:
        has_steps = capacity_bytes is None and len(timeline.calls) >= _FEWEST_CALLS
        decode = meter.run_steps() if has_steps else meter.run(end_of_prefill, None)
    return MemoryProfile(
        weights_bytes=weights_bytes,
        cache_bytes=timeline.calls[-1].cache_bytes,
        peak_allocated_bytes=meter.peak_allocated_bytes,
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
    """Replays stretches of a timeline and finds the peak of each.

    Attributes:
        peak_allocated_bytes: The most that has been allocated so far.
    """

    def __init__(
        self,
        allocator: CachingAllocator,
        timeline: Timeline,
        *,
        in_cache: frozenset[int],
        weights_bytes: int,
    ) -> None:
        self.peak_allocated_bytes = allocator.peak_allocated_bytes
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
        origins, workspaces = self._timeline.origins, self._workspaces
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
            if block in in_cache:
                self._cache_bytes += allocator.size_of(handle)
            elif block in workspaces:
                self._workspace_bytes += allocator.size_of(handle)
            if allocator.allocated_bytes > most:
                most = allocator.allocated_bytes
                parts, at = (self._cache_bytes, self._workspace_bytes), origin
        return None if parts is None else self._make_peak(most, *parts, origin=at)

    def run_steps(self) -> PhasePeak | None:
        """Replay all steps after the prompt, on a device that never runs full."""
        starts = [call.first_event for call in self._timeline.calls[1:]]
        events = EventTable.of(self._timeline.events[starts[0] :])
        births = np.flatnonzero(events.num_bytes >= 0)
        if not len(births):
            return None
        allocator = self._allocator
        changes = replay_steps(
            events,
            [start - starts[0] for start in starts],
            allocator=allocator,
            blocks={
                block: allocator.find_block(handle)
                for block, handle in self._handles.items()
                if handle
            },
            origins=self._timeline.origins,
        )
        allocated_bytes = allocator.allocated_bytes + np.cumsum(changes)
        at = births[np.argmax(allocated_bytes[births])]
        until, grown = events.blocks[: at + 1], changes[: at + 1]
        in_cache, workspaces = ([*kind] for kind in (self._in_cache, self._workspaces))
        return self._make_peak(
            int(allocated_bytes[at]),
            self._cache_bytes + int(grown[np.isin(until, in_cache)].sum()),
            self._workspace_bytes + int(grown[np.isin(until, workspaces)].sum()),
            origin=int(events.origins[at]),
        )

    @property
    def _workspaces(self) -> set[int]:
        found = (self._timeline.workspace_block, self._timeline.lt_workspace_block)
        return {block for block in found if block is not None}

    def _make_peak(
        self, allocated_bytes: int, cache_bytes: int, workspace_bytes: int, *, origin: int
    ) -> PhasePeak:
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, allocated_bytes)
        activation_bytes = allocated_bytes - self._weights_bytes - cache_bytes - workspace_bytes
        return PhasePeak(
            AllocatedParts(
                weights_bytes=self._weights_bytes,
                cache_bytes=cache_bytes,
                activation_bytes=activation_bytes,
                workspace_bytes=workspace_bytes,
            ),
            self._timeline.origins[origin],
        )
