"""Weights on a device that holds nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from moetool.simulation.memory.allocator.caching_allocator import CachingAllocator

# An estimate replays many runs of a model that is loaded in two or three ways.
_NUM_MODELS_KEPT = 8


class ReservedAtOnce(tuple[int, ...]):
    """Sizes of weights for which memory is reserved at once, before any of them is allocated.

    That is how `from_pretrained` loads them onto GPUs, each rank its shards
    (`caching_allocator_warmup`): so they lie without gaps, where weights that are allocated one after
    another get up to 1 MiB too much each.
    """


def allocate_weights(
    weight_bytes: Sequence[int], *, capacity_bytes: int | None = None
) -> CachingAllocator:
    """Return an allocator after weights were loaded, and unused memory reserved for that released.

    The weights are allocated one after another, in memory reserved before if they are
    `ReservedAtOnce` and it suffices. Its peaks are those since then.

    Args:
        weight_bytes: Sizes of the storages.
        capacity_bytes: Memory of the device that the allocator may reserve; None for no limit.

    Raises:
        DeviceFullError: The weights don't fit within the limit.
    """
    is_reserved = isinstance(weight_bytes, ReservedAtOnce)
    loaded, loading_bytes = _load_without_limit(tuple(weight_bytes), is_reserved)
    if capacity_bytes is None or loading_bytes <= capacity_bytes:
        return loaded.fork(capacity_bytes=capacity_bytes)
    return _load(weight_bytes, CachingAllocator(capacity_bytes=capacity_bytes))[0]


@lru_cache(maxsize=_NUM_MODELS_KEPT)
def _load_without_limit(
    weight_bytes: tuple[int, ...], is_reserved: bool
) -> tuple[CachingAllocator, int]:
    allocator = CachingAllocator()
    if is_reserved and any(weight_bytes):
        allocator.free(allocator.allocate(sum(weight_bytes)))
    return _load(weight_bytes, allocator)


def _load(weight_bytes: Sequence[int], allocator: CachingAllocator) -> tuple[CachingAllocator, int]:
    """Return an allocator after loading, and the most memory that it reserved meanwhile."""
    for num_bytes in weight_bytes:
        allocator.allocate(num_bytes)
    loading_bytes = allocator.peak_reserved_bytes
    allocator.release_free_segments()
    allocator.reset_peaks()
    return allocator, loading_bytes
