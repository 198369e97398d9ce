"""Checks on how the processes were started that are to share a model, and on their GPUs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from moetool.errors import UsageError
from moetool.tracing.plans import ParallelPlan
from moetool.wording import number_of

BY_DEVICE_MAP = "Use --device-map auto instead of --parallel, without torchrun."


def name_launch(number: int) -> str:
    """Return the beginning of a command that starts a number of processes."""
    return f"torchrun --nproc-per-node {number} -m moetool route-trace …"


def check_several(plan: ParallelPlan, *, number: int) -> None:
    """Refuse a process that is alone, and a transformers that is too old to share a model.

    Raises:
        UsageError: Either applies.
    """
    if number == 1:
        raise UsageError(
            f"--parallel {plan} shares a model among processes, and only one was started.",
            hint=f"Start one for each GPU: {name_launch(2)}",
        )
    import transformers
    from transformers.distributed.configuration_utils import DistributedConfig

    # Earlier versions hand routers' ids of this process's experts on, or exchange tokens.
    if "ep_implementation" not in {field.name for field in fields(DistributedConfig)}:
        raise UsageError(
            f"--parallel needs transformers 5.23 or newer, and this is {transformers.__version__}.",
            hint="Upgrade: pip install --upgrade transformers.",
        )


def check_gpus(*, local_number: int) -> None:
    """Refuse fewer GPUs than processes of this host; on a host without any, they run on the CPU.

    Raises:
        UsageError: There are fewer.
    """
    import torch

    if torch.accelerator.current_accelerator(check_available=True) is None:
        return
    num_gpus = torch.accelerator.device_count()
    if num_gpus < local_number:
        raise UsageError(
            f"This host has {number_of(num_gpus, 'GPU')} for {local_number} processes.",
            hint=f"Start one for each GPU: {name_launch(num_gpus)}"
            if num_gpus > 1
            else BY_DEVICE_MAP,
        )


def find_free_bytes(local_rank: int) -> int | None:
    """Return the free memory of a process's GPU; None without GPUs."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    module: Any = torch.get_device_module(accelerator)
    free_bytes, _ = module.mem_get_info(local_rank)
    return int(free_bytes)
