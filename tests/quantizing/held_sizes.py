"""Bytes of all tensors of quantized models, really loaded or simulated."""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn.modules import Params4bit
from torch import nn


def sizes_held(skeleton: nn.Module) -> dict[str, list[int]]:
    """Return the bytes of each module's own tensors in a skeleton, in ascending order."""
    sizes = {}
    for path, module in skeleton.named_modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        sizes[path] = sorted(tensor.nbytes for tensor in tensors)
    return sizes


def sizes_really_held(model: nn.Module) -> dict[str, list[int]]:
    """Return the same for a model that bitsandbytes quantized, including unregistered tensors."""
    sizes = {}
    for path, module in model.named_modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in list(tensors):
            if isinstance(tensor, Params4bit):
                state: Any = tensor.quant_state
                tensors += [state.absmax, state.code]
                if state.nested:
                    tensors += [state.offset, state.state2.absmax, state.state2.code]
            elif getattr(tensor, "SCB", None) is not None:
                tensors.append(tensor.SCB)
        sizes[path] = sorted(tensor.nbytes for tensor in tensors)
    return sizes
