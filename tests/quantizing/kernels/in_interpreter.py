"""The programs in Triton's language compute what plain torch does. `make kernels` runs this.

Without Triton, or outside its interpreter, nothing here passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from triton.runtime.interpreter import InterpretedFunction

from benchmarks.quantized.agreement import Case, find_disagreements, list_cases, measure_errors
from moetool.quantizing import experts as running
from moetool.quantizing.kernels import launch, programs
from moetool.quantizing.kernels.launcher import Launcher
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.packing import Packing
from moetool.quantizing.unpacking import unpack
from tests.quantizing.plain_experts import WIDTH, PlainExperts, pack

PACKINGS = (Packing(Quantization.NF4), Packing(Quantization.FP4, True), Packing(Quantization.INT8))


def test_programs_run_in_the_interpreter() -> None:
    assert isinstance(programs.multiply_each, InterpretedFunction)


@pytest.mark.parametrize("case", list_cases(), ids=str)
def test_kernels_equal_dequantized_matrices(case: Case) -> None:
    errors = measure_errors(case, "cpu")
    assert len(errors) == 4
    assert find_disagreements(case, errors, "cpu") == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_is_dequantized_bit_for_bit_as_by_torch(dtype: torch.dtype) -> None:
    module = pack(PlainExperts(), Packing(Quantization.INT8))
    for matrix in module.packed_matrices:
        tensors = running.packed_tensors(module, matrix)
        codes, scale = tensors[matrix.name][2:4], tensors[f"{matrix.name}_scale"][2:4]
        plain = unpack(tensors, [2, 3], matrix, module.packing, dtype=dtype)
        assert torch.equal(launch.unpack_int8(codes, scale, dtype=dtype), plain)


def test_sorted_outputs_are_added_up_as_by_torch() -> None:
    outputs, weights = torch.randn(6, 70), torch.rand(3, 2)
    places = torch.randperm(6)
    sums = (outputs[places].view(3, 2, 70) * weights.unsqueeze(-1)).sum(dim=1)
    assert torch.allclose(launch.add_up_sorted(outputs, places, weights), sums, rtol=1e-6)


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.quantization)
@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU])
def test_packed_experts_compute_the_same_with_kernels_and_without(
    packing: Packing, activation: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = pack(PlainExperts(activation()), packing)
    rows, weights = torch.randn(3, WIDTH), torch.rand(3, 2)
    ids = torch.tensor([[3, 7], [11, 12], [7, 0]])
    plain = module(rows, ids, weights)
    started = []

    def start(name: str, *args: Any, **options: int) -> Launcher:
        started.append(name)
        make: Any = Launcher
        made: Launcher = make(name, *args, **options)
        return made

    launch._prepare.cache_clear()
    monkeypatch.setattr(launch, "Launcher", start)
    monkeypatch.setattr(running, "is_on_gpu", lambda _: True)
    with torch.inference_mode():
        found = module(rows, ids, weights)
    is_gated = activation is nn.SiLU
    assert started == (
        ["multiply_gated", "multiply_and_add_up"] if is_gated else ["multiply_each"] * 2
    )
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))
