"""The processor cores that this process may use."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Return their number, which may be less than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
