"""Tensors on the meta device, and modes under which some of their values are known."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.meta_kernels import MetaKernels

TOKEN_ID = 7

meta = partial(torch.empty, device="meta")


def entered(values: KnownValues, *, is_alone: bool) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(torch.no_grad() if is_alone else torch.inference_mode())
    if not is_alone:
        stack.enter_context(MetaKernels())
    stack.enter_context(values)
    if not is_alone:
        stack.enter_context(AllocationRecorder(nn.Module(), origins=Origins()))
    return stack


def is_unknown(tensor: torch.Tensor) -> bool:
    try:
        tensor.flatten()[0].item()
    except RuntimeError as error:
        return "meta tensors" in str(error)
    return False
