"""Optimizers on the meta device, against the real ones on the CPU."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit
from torch import nn

from moetool.simulation.training.optimizers import BlockwiseAdamW

# The sizes around the smallest that is kept in 8 bits, and whole and broken blocks of 256.
_SHAPES = ((8,), (4095,), (4096,), (16, 256), (70, 70), (2, 48, 64), (4097,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_8_bits_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    real = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in _SHAPES]
    simulated = [nn.Parameter(torch.empty_like(each, device="meta")) for each in real]
    optimizers = AdamW8bit(real), BlockwiseAdamW(simulated)
    for parameters, optimizer in zip((real, simulated), optimizers, strict=True):
        for parameter in parameters[1:]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    found, expected = (
        [describe_states(optimizer.state.get(each, {})) for each in parameters]
        for optimizer, parameters in zip(reversed(optimizers), (simulated, real), strict=True)
    )
    assert found == expected
    # The maps of codes are shared.
    counts = [
        len({id(state["qmap1"]) for state in optimizer.state.values() if "qmap1" in state})
        for optimizer in optimizers
    ]
    assert counts == [1, 1]


def describe_states(
    state: dict[str, torch.Tensor | int],
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {
        name: (value.dtype, tuple(value.shape))
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
