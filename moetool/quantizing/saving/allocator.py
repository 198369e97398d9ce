"""Memory that goes back to the system when it is freed."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from contextlib import suppress

import torch

# The C library's allocator keeps smaller blocks for later.
_LARGE_BYTES = 2**18


def allocate(num_bytes: int) -> torch.Tensor:
    """Return bytes that, if they are many, leave the process's memory as soon as they are freed."""
    if num_bytes < _LARGE_BYTES:
        return torch.empty(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Else the system needs longer for handing out pages than for reading the file into them.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def release_freed() -> None:
    """Give back what the C library's allocator has kept, where it can."""
    trim = _find_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    """Return glibc's function; None in other libraries."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim
