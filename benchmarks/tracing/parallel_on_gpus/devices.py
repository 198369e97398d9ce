"""The devices that processes run on: GPUs, or the CPU where there are none."""

from __future__ import annotations

import gc

import torch

NUM_GPUS = 2
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"


def free() -> None:
    """Give the memory of models that are no longer used back to the GPU."""
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()


def wait() -> None:
    """Wait for the GPU."""
    if HAS_GPU:
        torch.cuda.synchronize()
