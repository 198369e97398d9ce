"""A run that can be replayed under any limit, also by another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moetool.simulation.memory.replay.memory_replay import MemoryProfile, replay_timeline
from moetool.simulation.memory.timeline import Timeline


@dataclass(frozen=True)
class TimelineReplay:
    """A function that replays a run.

    Attributes:
        timeline: The run.
        weight_bytes: Sizes of the model's storages.
    """

    timeline: Timeline
    weight_bytes: Sequence[int]

    @property
    def num_events(self) -> int:
        """The number of events that are replayed."""
        return len(self.timeline.events)

    def __call__(self, capacity_bytes: int | None) -> MemoryProfile:
        """Return the memory that the run takes.

        Args:
            capacity_bytes: Memory of the GPU that torch's allocator may reserve; None for no limit.

        Raises:
            DeviceFullError: The run doesn't fit within the limit.
        """
        return replay_timeline(
            self.timeline, weight_bytes=self.weight_bytes, capacity_bytes=capacity_bytes
        )
