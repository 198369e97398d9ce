"""Trials of whether a scenario fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Trial:
    """A simulated batch of prompts.

    Attributes:
        total_bytes: Memory that it takes on a device with room for everything it asks for.
        fits: Whether it completes on the GPU. It may fit even if `total_bytes` is more than the GPU
            has, because torch's allocator gives back reserved memory.
        allocated_bytes: The part of the total that is in use at the peak; None if it is unknown.
    """

    total_bytes: int
    fits: bool
    allocated_bytes: int | None = None

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
        allocated_bytes: As that of `Trial`.
    """

    count_total: Callable[[], int]
    fits: bool
    exceeded_bytes: int
    allocated_bytes: int | None = None

    @cached_property
    def total_bytes(self) -> int:
        """The memory that it takes on a device with room for everything."""
        return self.count_total()

    def exceeds(self, memory_bytes: int) -> bool:
        """Return whether it takes more than some memory."""
        return memory_bytes <= self.exceeded_bytes or self.total_bytes > memory_bytes


AnyTrial = Trial | LateTrial


def find_crossing(
    seen: Mapping[int, AnyTrial], numbers: Sequence[int], memory_bytes: int
) -> int | None:
    """Return the last number that fits, by a line through two; None if the line doesn't rise."""
    return _follow_line([(number, seen[number].total_bytes) for number in numbers], memory_bytes)


def leap(
    seen: dict[int, AnyTrial],
    try_number: Callable[[int], AnyTrial | None],
    memory_bytes: int,
    *,
    fitting: int,
    failing: int,
) -> tuple[int, int]:
    """Return a larger number that fits and a failing one; the same two if two trials find none.

    The largest number whose allocated bytes fit is tried, then the one halfway there. If one fits, it
    takes the place of the given one among `seen`, from which growth then begins anew.
    """
    most = _find_allocatable(seen, memory_bytes)
    if most is None or not fitting + 1 < most < failing:
        return fitting, failing
    tried: dict[int, AnyTrial] = {}
    for found, beyond in ((most, failing), ((fitting + most) // 2, most)):
        trial = try_number(found)
        if trial is None:
            break
        tried[found] = trial
        if trial.fits:
            del seen[fitting]
            seen.update(tried)
            return found, beyond
    return fitting, failing


def _find_allocatable(seen: Mapping[int, AnyTrial], memory_bytes: int) -> int | None:
    """Return the last number whose allocated bytes fit, by a line through the two largest.

    What an allocator reserves beyond them is given back where memory runs short. None if they are
    unknown or don't rise.
    """
    known = [
        (number, trial.allocated_bytes)
        for number, trial in sorted(seen.items())
        if trial.allocated_bytes is not None
    ]
    return _follow_line(known[-2:], memory_bytes) if len(known) > 1 else None


def _follow_line(points: Sequence[tuple[int, int]], memory_bytes: int) -> int | None:
    """Return the last number at which a line through two points is within memory."""
    (one, start_bytes), (other, end_bytes) = sorted(points)
    rise = end_bytes - start_bytes
    return None if rise <= 0 else one + (memory_bytes - start_bytes) * (other - one) // rise
