"""Kernels for packed experts, compared with dequantized matrices in float64.

`make kernels` runs the comparisons in Triton's interpreter, and `on_gpu` on a GPU.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from moetool.quantizing.gating import Gating
from moetool.quantizing.kernels import launch
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.quantizing.unpacking import unpack

# Of the norm of all results: what rounding them to their dtype does at most.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
# The interpreter cuts bfloat16 off instead of rounding it.
_WHERE_CUT_OFF = {**TOLERANCES, torch.bfloat16: 2**-7}
NUM_EXPERTS, NUM_TOKENS, TOP_K = 5, 3, 2
SILU = Gating(is_interleaved=False, limit=None, alpha=1.0, shift=0.0)
GPT_OSS = Gating(is_interleaved=True, limit=1.5, alpha=1.702, shift=1.0)


@dataclass(frozen=True)
class Case:
    """A stack of matrices and the rows that are multiplied with it.

    Attributes:
        quantization: The format of the matrices.
        is_nested: Whether their scales are quantized.
        dtype: Of rows and biases.
        has_bias: Whether products have biases.
    """

    quantization: Quantization
    is_nested: bool
    dtype: torch.dtype
    has_bias: bool

    def __str__(self) -> str:
        nested = ", double quantization" if self.is_nested else ""
        bias = ", bias" if self.has_bias else ""
        return f"{self.quantization}{nested}, {str(self.dtype).removeprefix('torch.')}{bias}"


def list_cases() -> list[Case]:
    """Return all formats in all dtypes, half of them with biases."""
    formats = [
        (Quantization.NF4, False),
        (Quantization.NF4, True),
        (Quantization.FP4, False),
        (Quantization.FP4, True),
        (Quantization.INT8, False),
    ]
    return [
        Case(*kind, dtype, has_bias=number % 2 == 0)
        for number, (kind, dtype) in enumerate(itertools.product(formats, TOLERANCES))
    ]


def measure_errors(case: Case, device: str) -> dict[str, float]:
    """Return how far the results of each kernel are from those in float64, by its name.

    Neither outputs nor inputs fill whole tiles, and some ids have no matrix.
    """
    generator = torch.Generator().manual_seed(0)
    packing = Packing(case.quantization, case.is_nested)
    matrix = ExpertMatrix("w", NUM_EXPERTS, 20, 9 * 64, is_transposed=False)
    shape = (NUM_EXPERTS, matrix.out_features, matrix.in_features)
    stack = torch.randn(shape, generator=generator) * 0.05
    tensors = {name: t.to(device) for name, t in packing.quantize(stack, matrix).items()}
    bias = torch.randn(shape[:2], generator=generator).to(case.dtype) if case.has_bias else None
    rows, each_row = (
        torch.randn(count, matrix.in_features, generator=generator).to(case.dtype)
        for count in (NUM_TOKENS, NUM_TOKENS * TOP_K)
    )
    ids = torch.tensor([[4, 0], [2, NUM_EXPERTS], [4, 3]])
    weights = torch.rand(NUM_TOKENS, TOP_K, generator=generator)
    exact = _Exact(tensors, matrix, packing, bias)
    there: Any = {"tensors": tensors, "matrix": matrix, "packing": packing}
    there["bias"] = None if bias is None else bias.to(device)
    rows_there, ids_there = rows.to(device), ids.to(device)
    products = exact.multiply(rows.repeat_interleave(TOP_K, 0), ids)
    halves = products.chunk(2, dim=1), (products[:, ::2], products[:, 1::2])
    sums = exact.multiply(each_row, ids).view(NUM_TOKENS, TOP_K, -1) * weights.unsqueeze(-1)
    pairs = {
        "multiply_each": (
            launch.multiply_each(rows_there, ids_there.reshape(-1), **there),
            products,
        ),
        "multiply_gated, SiLU": (
            launch.multiply_gated(rows_there, ids_there, gating=SILU, **there),
            SILU.apply(*halves[0]),
        ),
        "multiply_gated, gpt-oss": (
            launch.multiply_gated(rows_there, ids_there, gating=GPT_OSS, **there),
            GPT_OSS.apply(*halves[1]),
        ),
        "multiply_and_add_up": (
            launch.multiply_and_add_up(each_row.to(device), ids_there, weights.to(device), **there),
            sums.sum(dim=1),
        ),
    }
    return {name: _measure_error(found, exact) for name, (found, exact) in pairs.items()}


def find_disagreements(case: Case, errors: dict[str, float], device: str) -> list[str]:
    """Return a sentence for each kernel whose error is beyond its dtype's tolerance."""
    tolerances = _WHERE_CUT_OFF if device == "cpu" else TOLERANCES
    return [
        f"{name} ({case}): error {error:.1e}"
        for name, error in errors.items()
        if not error <= tolerances[case.dtype]
    ]


class _Exact:
    """Products in float64 with matrices that plain torch dequantized."""

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        matrix: ExpertMatrix,
        packing: Packing,
        bias: torch.Tensor | None,
    ) -> None:
        held = {name: tensor.cpu() for name, tensor in tensors.items()}
        plain = unpack(held, range(NUM_EXPERTS), matrix, packing, dtype=torch.float32).double()
        # Ids beyond the matrices contribute nothing.
        self._matrices = torch.cat([plain, torch.zeros_like(plain[:1])])
        self._bias = torch.zeros(self._matrices.shape[:2], dtype=torch.float64)
        if bias is not None:
            self._bias[:-1] = bias.double()

    def multiply(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        chosen = ids.reshape(-1)
        products = torch.einsum("nok,nk->no", self._matrices[chosen], rows.double())
        return products + self._bias[chosen]


def _measure_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    error: float = ((found.double().cpu() - exact).norm() / exact.norm()).item()
    return error
