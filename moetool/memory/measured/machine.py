"""The machine that a measurement runs on: its versions, its driver, and the speed of its bus."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import moetool
from moetool.memory.machine.driver import Ask, ask_driver, query_gpus
from moetool.memory.measured.measurement import BusBandwidth, Machine

if TYPE_CHECKING:
    import torch

_COPIED_BYTES = 256 * 2**20
_NUM_COPIES = 5


def describe_machine(*, ask: Ask = ask_driver) -> Machine:
    """Return the versions on this machine, and the memory of the first GPU that torch sees.

    Args:
        ask: Asks the driver's own tool.
    """
    import torch

    return Machine(
        memory_bytes=torch.cuda.get_device_properties(0).total_memory,
        driver=_find_driver(ask),
        cuda=torch.version.cuda,
        versions={**list_versions(), "torch": torch.__version__},
    )


def list_versions() -> dict[str, str]:
    """Return the versions of what estimates and measures, by package, without importing torch."""
    return {
        "moetool": moetool.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def find_gpu_name() -> str:
    """Return the name of the first GPU that torch sees."""
    import torch

    return torch.cuda.get_device_name()


def _find_driver(ask: Ask) -> str | None:
    try:
        # One driver runs all GPUs of a machine.
        return query_gpus(["driver_version"], ask=ask)[0][0] or None
    except (OSError, IndexError, subprocess.SubprocessError):
        return None


def measure_bus(device: str = "cuda") -> BusBandwidth | None:
    """Return the speed of copies of 256 MiB to a device; None if the memory for them is lacking.

    Each is the median of five copies after one that isn't counted.
    """
    import torch

    try:
        target = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
        # Zeros would be pages that the system has not given yet.
        pageable = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
        return BusBandwidth(
            pinned_bytes_per_s=_time_copies(pageable.pin_memory(), target),
            pageable_bytes_per_s=_time_copies(pageable, target),
        )
    except RuntimeError:
        # torch reports a lack of memory of the GPU and of page-locked memory in this way.
        return None


def _time_copies(source: torch.Tensor, target: torch.Tensor) -> float:
    import torch

    seconds = []
    synchronize: Any = torch.cuda.synchronize
    for _ in range(_NUM_COPIES + 1):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return source.nbytes / statistics.median(seconds[1:])
