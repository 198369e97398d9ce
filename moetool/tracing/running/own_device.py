"""The GPU that each of several processes takes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch

from moetool.errors import UsageError
from moetool.tracing.processes.processes import Processes
from moetool.wording import number_of


def choose_own_device(processes: Processes, name: str | None) -> torch.device:
    """Return the device of one of several processes: its own GPU, or the CPU where there is none.

    Args:
        processes: All of them have to call this.
        name: `cpu` for the CPU even where there are GPUs.

    Raises:
        UsageError: A host has fewer GPUs than processes.
        LostProcessError: Another process has failed.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu":
        accelerator = None
    own = None if accelerator is None else _find_gpu(accelerator, processes.local_rank)
    shared = processes.broadcast(_find_shared(processes.gather(own)))
    if shared is not None:
        host, num_gpus, num_processes = shared
        raise UsageError(
            f"{num_processes} processes were started on {host}, which has "
            f"{number_of(num_gpus, 'GPU')} for them.",
            hint="Start one process for each GPU, or put all on the CPU with --device cpu.",
        )
    if own is None or accelerator is None:
        return torch.device("cpu")
    index = processes.local_rank % torch.accelerator.device_count()
    torch.accelerator.set_device_index(index)
    return torch.device(accelerator.type, index)


def _find_gpu(accelerator: torch.device, local_rank: int) -> tuple[str, int, str]:
    """Return the host, the number of GPUs that this process sees there, and what names its own.

    A launcher may show each process one GPU only.
    """
    num_gpus = torch.accelerator.device_count()
    index = local_rank % num_gpus
    module: Any = torch.get_device_module(accelerator)
    properties = module.get_device_properties(index)
    return platform.node(), num_gpus, str(getattr(properties, "uuid", index))


def _find_shared(gpus: Sequence[tuple[str, int, str] | None]) -> tuple[str, int, int] | None:
    """Return a host on which processes would share a GPU, with its GPUs and processes."""
    owned = [gpu for gpu in gpus if gpu is not None]
    for host, _, uuid in owned:
        here = [gpu for gpu in owned if gpu[0] == host]
        if sum(gpu[2] == uuid for gpu in here) > 1:
            return host, len({gpu[2] for gpu in here}), len(here)
    return None
