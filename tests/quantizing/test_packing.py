"""Parts of matrices are quantized as whole matrices are."""

from __future__ import annotations

import pytest
import torch

from moetool.quantizing import packing
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.packing import ExpertMatrix, Packing


@pytest.mark.parametrize("in_features", [64, 96, 34])
@pytest.mark.parametrize(
    "chosen",
    [
        Packing(Quantization.NF4),
        Packing(Quantization.FP4, is_double_quantized=True),
        Packing(Quantization.INT8),
    ],
)
def test_parts_of_a_matrix_have_the_codes_of_the_whole(
    chosen: Packing, in_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = ExpertMatrix("up_proj", 2, 333, in_features, is_transposed=False)
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(2, 333, in_features, generator=generator)
    whole = chosen.quantize(stack, matrix)
    split = packing._split_rows(stack[0])
    assert len(split) == 1
    monkeypatch.setattr(packing, "_CPU_WEIGHTS", 1000)
    assert len(packing._split_rows(stack[0])) > 5
    parts = chosen.quantize(stack, matrix)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
