"""Trials of whether a scenario fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Trial:
    """A simulated batch of prompts.

    Attributes:
        total_bytes: Memory that it takes on a device with room for everything it asks for.
        fits: Whether it completes on the GPU. It may fit even if `total_bytes` is more than the GPU
            has, because torch's allocator gives back reserved memory.
    """

    total_bytes: int
    fits: bool

    def exceeds(self, memory_bytes: int) -> bool:
        """Return whether it takes more than some memory."""
        return self.total_bytes > memory_bytes


@dataclass(frozen=True)
class LateTrial:
    """A trial whose total takes time and may never be asked for.

    Attributes:
        count_total: Returns it.
        fits: As that of `Trial`.
        exceeded_bytes: Memory than which the total is known to be more.
    """

    count_total: Callable[[], int]
    fits: bool
    exceeded_bytes: int

    @cached_property
    def total_bytes(self) -> int:
        """The memory that it takes on a device with room for everything."""
        return self.count_total()

    def exceeds(self, memory_bytes: int) -> bool:
        """Return whether it takes more than some memory."""
        return memory_bytes <= self.exceeded_bytes or self.total_bytes > memory_bytes


AnyTrial = Trial | LateTrial
