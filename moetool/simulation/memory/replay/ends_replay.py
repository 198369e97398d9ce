"""Replays of generations of which the first and last steps are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.allocator.weights import allocate_weights
from moetool.simulation.memory.replay.memory_replay import MemoryProfile, replay_timeline
from moetool.simulation.memory.timeline import Timeline


class Room(NamedTuple):
    """A run under a limit on the allocator's memory.

    Attributes:
        fits: Whether the run completes.
        needed_bytes: The memory that it takes without the limit; None for an unknown number of bytes
            that is larger than the limit.
        allocated_bytes: The part of it that is allocated at the peak of the run that completes; None
            if none does.
    """

    fits: bool
    needed_bytes: int | None
    allocated_bytes: int | None = None


@dataclass(frozen=True)
class EndsReplay:
    """A function that replays a generation by its start and by later stretches of it.

    Attributes:
        start: The prompt and the first steps.
        others: Later stretches, the last of which ends it. Their first calls don't count. Empty if the
            start is all of it.
        weight_bytes: Sizes of the model's storages.
    """

    start: Timeline
    others: Sequence[Timeline]
    weight_bytes: Sequence[int]

    @property
    def num_events(self) -> int:
        """The number of events that are replayed with the places of all blocks."""
        return len(self.start.events)

    @property
    def weights_bytes(self) -> int:
        """The weights as the allocator holds them."""
        return allocate_weights(self.weight_bytes).allocated_bytes

    def __call__(self, capacity_bytes: int | None) -> MemoryProfile:
        """Return the memory that the run takes.

        Args:
            capacity_bytes: Memory of the GPU that torch's allocator may reserve; None for no limit.

        Raises:
            DeviceFullError: The run doesn't fit within the limit.
        """
        return self._add_others(self._replay_start(capacity_bytes), capacity_bytes)

    def find_room(self, capacity_bytes: int) -> Room:
        """Return whether the run fits within a limit, as replays with and without it show.

        A start that completes without a retry is the same without the limit, and one with a retry
        has taken more than the limit.
        """
        needed_bytes = None
        try:
            start = self._replay_start(capacity_bytes)
            if not start.num_retries:
                whole = self._add_others(start, None)
                needed_bytes = whole.peak_reserved_bytes
                if needed_bytes <= capacity_bytes:
                    return Room(True, needed_bytes, whole.peak_allocated_bytes)
            whole = self._add_others(start, capacity_bytes)
        except DeviceFullError:
            return Room(fits=False, needed_bytes=needed_bytes)
        return Room(True, needed_bytes, whole.peak_allocated_bytes)

    def _replay_start(self, capacity_bytes: int | None) -> MemoryProfile:
        return replay_timeline(
            self.start, weight_bytes=self.weight_bytes, capacity_bytes=capacity_bytes
        )

    def _add_others(self, first: MemoryProfile, capacity_bytes: int | None) -> MemoryProfile:
        """Return the profile of the run, given that of its start."""
        if not self.others:
            return first
        later = [
            replay_timeline(
                timeline,
                weight_bytes=self.weight_bytes,
                capacity_bytes=capacity_bytes,
                is_prompt_limited=False,
                is_reserve_followed=False,
            )
            for timeline in self.others
        ]
        peaks = [each.decode for each in (first, *later) if each.decode is not None]
        decode = max(peaks, key=lambda peak: peak.parts.above_weights_bytes)
        decode_bytes = first.weights_bytes + decode.parts.above_weights_bytes
        allocated_bytes = max(first.peak_allocated_bytes, decode_bytes)
        spare_bytes = first.peak_reserved_bytes - first.peak_allocated_bytes
        reserved_bytes = allocated_bytes + spare_bytes
        return replace(
            first,
            cache_bytes=later[-1].cache_bytes,
            host_cache_bytes=later[-1].host_cache_bytes,
            peak_allocated_bytes=allocated_bytes,
            peak_reserved_bytes=reserved_bytes
            if capacity_bytes is None
            else min(reserved_bytes, capacity_bytes),
            decode=decode,
        )
