"""Packed matrices stand for the weights that their codes and scales name, at any width."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.quantized.kinds import Quantization
from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.quantizing.unpacking import unpack

functions: Any = kernels


def decode(tensors: dict[str, torch.Tensor], matrix: ExpertMatrix, packing: Packing) -> list[float]:
    """Return one expert's weights, one after the other in a plain loop."""
    codes = tensors["w"].flatten().tolist()
    if not packing.is_4bit:
        scales = tensors["w_scale"].tolist()
        return [c * scales[i // matrix.in_features] / 127 for i, c in enumerate(codes)]
    values = functions.get_4bit_type(packing.quantization.value, device="cpu").tolist()
    scales = tensors["w_absmax"].tolist()
    if packing.is_double_quantized:
        steps = functions.create_dynamic_map().tolist()
        nested, offset = tensors["w_nested_absmax"].tolist(), tensors["w_offset"].item()
        scales = [steps[s] * nested[i // 256] + offset for i, s in enumerate(scales)]
    halves = [half for code in codes for half in (code >> 4, code & 15)]
    return [values[half] * scales[i // 64] for i, half in enumerate(halves)]


@settings(max_examples=12, deadline=None)
@given(
    quantization=st.sampled_from([Quantization.NF4, Quantization.FP4, Quantization.INT8]),
    is_nested=st.booleans(),
    out_features=st.integers(1, 5),
    # Rows end within blocks of 64 or at their ends.
    half=st.one_of(st.integers(1, 70), st.sampled_from([32, 64])),
    is_transposed=st.booleans(),
    chosen=st.sets(st.integers(0, 3), min_size=1),
)
def test_unpacked_weights_are_those_of_a_plain_loop(
    quantization: Quantization,
    is_nested: bool,
    out_features: int,
    half: int,
    is_transposed: bool,
    chosen: set[int],
) -> None:
    packing = Packing(quantization, is_nested)
    matrix = ExpertMatrix("w", 4, out_features, 2 * half, is_transposed)
    generator = torch.Generator().manual_seed(out_features * half)
    stack = torch.randn(4, out_features, 2 * half, generator=generator)
    given_stack = stack.mT.contiguous() if is_transposed else stack
    tensors = packing.quantize(given_stack, matrix)
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == packing.list_tensors(
        matrix
    )
    assert packing.count_bytes(matrix) == sum(tensor.nbytes for tensor in tensors.values())
    experts = sorted(chosen)
    found = unpack(tensors, experts, matrix, packing, dtype=torch.float32)
    for place, expert in enumerate(experts):
        one = {name: tensor[expert] for name, tensor in tensors.items()}
        expected = torch.tensor(decode(one, matrix, packing)).view(out_features, 2 * half)
        assert torch.allclose(found[place], expected, rtol=1e-6, atol=1e-7)
    rounded = unpack(tensors, experts, matrix, packing, dtype=torch.bfloat16)
    assert torch.equal(rounded, found.to(torch.bfloat16))


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.INT8])
def test_experts_are_quantized_each_by_itself(quantization: Quantization) -> None:
    packing = Packing(quantization)
    stack = torch.randn(3, 8, 10)
    whole = packing.quantize(stack, ExpertMatrix("w", 3, 8, 10, is_transposed=False))
    alone = packing.quantize(stack[1:2], ExpertMatrix("w", 1, 8, 10, is_transposed=False))
    assert all(torch.equal(whole[name][1:2], tensor) for name, tensor in alone.items())
