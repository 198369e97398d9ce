"""Codes that are looked up on the CPU are those that bitsandbytes searches for."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional
import pytest
import torch

from moetool.quantizing.kinds import Quantization
from moetool.quantizing.loading.cpu_codes import one_thread_each, quantize_blocks

functions: Any = bitsandbytes.functional
FORMATS = (Quantization.NF4, Quantization.FP4)
# What is special in floats: none, one of the smallest, and no numbers.
SPECIAL = (0.0, 1e-42, float("inf"), -float("inf"), float("nan"))


def compare(weights: torch.Tensor, quantization: Quantization) -> None:
    codes, absmax = quantize_blocks(weights, quantization, block_size=64)
    expected, state = functions.quantize_4bit(weights, blocksize=64, quant_type=quantization.value)
    assert torch.equal(codes, expected.flatten())
    assert torch.equal(absmax.isnan(), state.absmax.isnan())
    assert torch.equal(absmax.nan_to_num(-1), state.absmax.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantization", FORMATS)
def test_random_and_special_weights(quantization: Quantization, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = torch.randn(512, 64, dtype=torch.float32)
    for row, value in enumerate(SPECIAL):
        weights[row, 7] = value
        weights[row + len(SPECIAL)] = value
    compare(weights.to(dtype).flatten(), quantization)


@pytest.mark.parametrize("quantization", FORMATS)
def test_weights_around_each_midpoint(quantization: Quantization) -> None:
    values = functions.get_4bit_type(quantization.value, device="cpu").sort()[0]
    midpoints = (values[:-1] + values[1:]) / 2
    steps = torch.arange(-31, 32, dtype=torch.int32)
    near = (midpoints.view(torch.int32).unsqueeze(1) + steps).view(torch.float32)
    near[midpoints == 0] = steps * torch.finfo(torch.float32).smallest_normal
    # The largest weight of a block, 1, leaves the others as they are.
    blocks = torch.cat([near.new_ones(len(near), 1), near], dim=1)
    compare(blocks.flatten(), quantization)
    codes, _ = quantize_blocks(blocks.flatten(), quantization, block_size=64)
    # Both sides of each midpoint are seen.
    assert all(len(row.unique()) > 1 for row in codes.view(len(near), -1)[:, 1:])


def test_threads_use_no_others_and_the_number_is_restored() -> None:
    before = torch.get_num_threads()
    with one_thread_each() as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(4))) == {1}
    assert torch.get_num_threads() == before
