"""Checks on a skeleton that processes can share a model under one of transformers' plans."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from moetool.checkpoint.stated.quantization import find_method
from moetool.errors import UntraceableError, UsageError
from moetool.memory.sharing.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.memory.sharing.shards import PACKED_STYLES
from moetool.memory.sharing.sharing_plans import read_tensor_plan
from moetool.tracing.parallel.launch import BY_DEVICE_MAP, name_launch
from moetool.tracing.plans import ParallelPlan
from moetool.wording import format_bytes, join_words, number_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moetool.memory.answers.on_gpus import RankBytes

_SHARES: Mapping[ParallelPlan, Callable[..., RankBytes]] = {
    ParallelPlan.TENSOR: share_by_tensor_parallel,
    ParallelPlan.EXPERT: share_by_expert_parallel,
}
# Looked through for a number of processes that works.
_NUMBERS = (2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
_MOST_NAMED = 5


def check_plan(
    skeleton: PreTrainedModel,
    plan: ParallelPlan,
    *,
    name: str,
    rank: int,
    number: int,
    free_bytes: int | None,
) -> None:
    """Refuse a model that a number of processes can't share.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        plan: The one to share it under.
        name: The model as the user named it.
        rank: This process.
        number: Number of processes.
        free_bytes: Free memory of this process's GPU; None where the model is on the CPU.

    Raises:
        UntraceableError: transformers has no plan for the model, or none for its weights as they
            are stored.
        UsageError: Experts or heads can't be shared evenly, or the weights don't fit.
    """
    method = find_method(skeleton.config)
    if method is not None:
        raise UntraceableError(
            f"{name} is quantized ({method}), and --parallel shares plain weights only.",
            hint=BY_DEVICE_MAP,
        )
    _refuse_misplaced_cuts(skeleton, plan, name=name)
    share = _SHARES[plan]
    asked = share(skeleton, num_gpus=number)
    others = {other: share(skeleton, num_gpus=other) for other in _NUMBERS}
    working = {
        other: max(found.weights_bytes) for other, found in others.items() if not found.reason
    }
    if asked.reason is not None and not working:
        raise UntraceableError(
            f"{name} can't be shared with --parallel {plan}: {asked.reason}.", hint=BY_DEVICE_MAP
        )
    if asked.reason is not None:
        raise UsageError(
            f"{name} can't be shared by {number} processes with --parallel {plan}: {asked.reason}.",
            hint=f"Start {_name_numbers(list(working))} processes: {name_launch(min(working))}",
        )
    needed = asked.weights_bytes[rank]
    if free_bytes is not None and needed > free_bytes:
        fitting = [other for other, num_bytes in working.items() if num_bytes <= free_bytes]
        raise UsageError(
            f"{name} needs {format_bytes(needed)} of weights on each of {number_of(number, 'GPU')}, "
            f"and the GPU of process {rank} has {format_bytes(free_bytes)} free.",
            hint=f"Start {_name_numbers(fitting)} processes, each with its own GPU: "
            f"{name_launch(min(fitting))}"
            if fitting
            else BY_DEVICE_MAP,
        )


def _name_numbers(numbers: list[int]) -> str:
    return join_words([str(number) for number in numbers[:_MOST_NAMED]], last="or")


def _refuse_misplaced_cuts(skeleton: PreTrainedModel, plan: ParallelPlan, *, name: str) -> None:
    """Refuse stored weights that transformers 5.24 cuts in other places than their counterparts.

    A parameter that packs gate and up projections is cut in both halves. If the checkpoint stores
    them apart, each a stack of all experts, each is taken for a packed one and cut in its own halves:
    the model loads and runs, with the columns of its down projections in a different order.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    if plan is not ParallelPlan.TENSOR:
        return
    styles = read_tensor_plan(skeleton)
    packed = [path for path, _ in skeleton.named_parameters() if styles.get(path) in PACKED_STYLES]
    for conversion in get_model_conversion_mapping(skeleton):
        steps = [type(step).__name__ for step in getattr(conversion, "operations", ())]
        if "Concatenate" not in steps or "MergeModulelist" in steps:
            continue
        for path in packed:
            if any(re.search(f"{pattern}$", path) for pattern in conversion.target_patterns):
                raise UntraceableError(
                    f"{name} can't be shared with --parallel {plan}: transformers cuts the stored "
                    f"parts of {path} in the wrong places.",
                    hint=f"Use --parallel {ParallelPlan.EXPERT}, or --device-map auto without "
                    "torchrun.",
                )
