"""Loading a model that processes share."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

import torch

from moetool.checkpoint.config import first_line
from moetool.errors import InputError, OutOfMemoryError
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.parallel.launch import BY_DEVICE_MAP
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.running.devices import find_input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_distributed_config(plan: ParallelPlan, *, number: int) -> Any:
    """Return what transformers' `from_pretrained` takes to share a model among processes.

    Under the expert-parallel plan every process runs its experts on all tokens, and an all-reduce
    adds up their outputs: no tokens are exchanged, so that each process sees every decision.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    if plan is ParallelPlan.TENSOR:
        return DistributedConfig(tp_size=number, tp_plan="auto")
    return DistributedConfig(
        tp_size=number, tp_plan="auto", ep_size=number, ep_implementation="all_reduce"
    )


def check_runs(model: PreTrainedModel, plan: ParallelPlan, *, name: str) -> None:
    """Check that a shared model's forward runs, on two tokens.

    Raises:
        InputError: transformers' forward fails under the plan.
        OutOfMemoryError: It runs out of memory.
    """
    tokens = torch.zeros((1, 2), dtype=torch.long, device=find_input_device(model))
    try:
        with torch.inference_mode():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Out of memory when {name} first ran, on two tokens.",
                hint="Start more processes, each with its own GPU.",
            ) from error
        raise InputError(
            f"transformers can't run {name} with --parallel {plan}.",
            hint=BY_DEVICE_MAP,
            facts=[f"seen: {first_line(error)}"],
        ) from error


def leave_at_exit() -> None:
    """Have torch end its communication when Python ends, or it warns that nobody did."""
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
