"""This machine's GPU, as its driver or torch reports it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

from moetool.catalogue.gpus import Gpu, MemoryIs, find_gpu, find_named_like, make_custom_gpu
from moetool.errors import UsageError
from moetool.memory.machine.driver import (
    Ask,
    ask_driver,
    find_first_visible,
    is_numbered_by_slot,
    query_gpus,
)

HERE = "here"

# Drivers report up to this share more or less than the catalogue, with other versions or without
# error correction. Variants of a GPU differ by more.
_SAME_MEMORY_SHARE = 0.1
_LONGEST_ID = 60


@dataclass(frozen=True)
class ReportedGpu:
    """A GPU as the machine reports it.

    Attributes:
        name: The driver's name, such as `NVIDIA H100 80GB HBM3`.
        memory_bytes: Its memory; None if unknown.
        compute_capability: CUDA's `major.minor`; None if unknown.
        is_whole_memory: Whether the memory includes what the driver reserves.
    """

    name: str
    memory_bytes: int | None
    compute_capability: str | None = None
    is_whole_memory: bool = True


# Returns the first GPU that torch sees; None if there is none.
AskTorch = Callable[[], ReportedGpu | None]


def take_gpu(text: str) -> Gpu:
    """Return the GPU that a text names: `here` for this machine's, else as `find_gpu`.

    Raises:
        UsageError: It is not the name of a GPU, or this machine has none.
    """
    return find_local_gpu() if text.strip().lower() == HERE else find_gpu(text)


def find_local_gpu(*, ask: Ask = ask_driver, ask_torch: AskTorch | None = None) -> Gpu:
    """Return this machine's first GPU: a known one with the memory it has here, or a custom one.

    torch is only loaded if the driver's own tool can't answer.

    Args:
        ask: Asks the driver's tool.
        ask_torch: Asks torch; None for the installed one.

    Raises:
        UsageError: This machine has no GPU, or nothing reports it.
    """
    reported = _read_driver(ask) or (ask_torch or _read_torch)()
    if reported is None:
        raise UsageError(
            "This machine has no GPU that its driver or torch reports.",
            hint="Name a GPU, such as rtx-4090, or a size, such as 24GiB.",
        )
    return _recognize(reported)


def _read_driver(ask: Ask) -> ReportedGpu | None:
    """Return the GPU that CUDA programs see first; None if the driver's tool can't tell which."""
    first = find_first_visible()
    # It knows a slice of a GPU by another number.
    if not first or first.startswith("MIG"):
        return None
    try:
        if first.isdecimal() and not is_numbered_by_slot():
            names = {name for (name,) in query_gpus(["name"], ask=ask)}
            if len(names) > 1:
                return None
        properties = ["name", "memory.total", "compute_cap", "mig.mode.current"]
        ((name, memory, capability, sliced),) = query_gpus(properties, f"--id={first}", ask=ask)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if not name or sliced == "Enabled":
        return None
    return ReportedGpu(
        name=name,
        memory_bytes=int(memory) * 2**20 if memory.isdecimal() else None,
        compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
    )


def _read_torch() -> ReportedGpu | None:
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    is_cuda = torch.version.cuda is not None
    return ReportedGpu(
        name=found.name,
        memory_bytes=found.total_memory,
        compute_capability=f"{found.major}.{found.minor}" if is_cuda else None,
        is_whole_memory=False,
    )


def _recognize(reported: ReportedGpu) -> Gpu:
    """Return the known GPU of a name and about that much memory, else a custom one."""
    for gpu in _list_candidates(reported.name):
        memory_bytes = reported.memory_bytes
        if memory_bytes is None or (memory_bytes == gpu.memory_bytes):
            return gpu
        if abs(memory_bytes - gpu.memory_bytes) <= _SAME_MEMORY_SHARE * gpu.memory_bytes:
            # What torch sees is less than the driver's figure, which the catalogue has.
            return replace(gpu, memory_bytes=memory_bytes) if reported.is_whole_memory else gpu
    if reported.memory_bytes is None:
        raise UsageError(
            f"The memory of this machine's {reported.name} is unknown.",
            hint="Give its size, such as 24GiB.",
        )
    return _make_custom(reported, reported.memory_bytes)


def _list_candidates(name: str) -> list[Gpu]:
    try:
        return [find_gpu(name)]
    except UsageError:
        return list(find_named_like(name))


def _make_custom(reported: ReportedGpu, memory_bytes: int) -> Gpu:
    words = re.findall(r"[a-z0-9]+", reported.name.lower())
    return make_custom_gpu(
        "-".join(words)[:_LONGEST_ID] or HERE,
        title=reported.name,
        memory_bytes=memory_bytes,
        memory_is=MemoryIs.REPORTED,
        compute_capability=reported.compute_capability,
    )
