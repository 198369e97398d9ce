"""Memory that CUDA and its libraries keep on a GPU, whatever runs there."""

from __future__ import annotations

from moetool.catalogue.gpus import Gpu

# The CUDA context of an H200 with torch 2.11 and CUDA 13, after a run; 720 to 752 MB were seen.
CONTEXT_BYTES = 738_197_504

# torch's defaults for cuBLAS, as buffers of some KiB each: `CUBLAS_WORKSPACE_CONFIG` is :4096:8 from
# compute capability 9.0 on, and :4096:2:16:8 before.
_WORKSPACE_BYTES = 4096 * 2**10 * 8
_WORKSPACE_BYTES_BEFORE_HOPPER = (4096 * 2 + 16 * 8) * 2**10
_HOPPER = (9, 0)


def find_workspace_bytes(gpu: Gpu) -> int:
    """Return the workspace that torch allocates on a GPU for the first matrix product and keeps."""
    capability = find_capability(gpu)
    if capability is not None and capability < _HOPPER:
        return _WORKSPACE_BYTES_BEFORE_HOPPER
    return _WORKSPACE_BYTES


def find_capability(gpu: Gpu) -> tuple[int, int] | None:
    """Return a GPU's compute capability as a pair of numbers; None if it is unknown."""
    if gpu.compute_capability is None:
        return None
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)
