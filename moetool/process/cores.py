"""The processor cores that this process may use."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Return their number, which may be less than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_torch_to_one_core() -> None:
    """Have torch compute in one thread, where the other cores have work of their own."""
    import torch

    torch.set_num_threads(1)
