"""Packed experts run those that are hit, in parts of bounded size, and keep their scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from moetool.quantizing import experts as running
from moetool.quantizing.experts import unpack_matrix
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.packing import ExpertMatrix, Packing
from tests.quantizing.plain_experts import INNER, NUM_EXPERTS, WIDTH, PlainExperts, pack


class ScaledRowsExperts(PlainExperts):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        del hidden_states
        raise AssertionError("packed experts run other code")


@pytest.fixture
def packed() -> Any:
    torch.manual_seed(0)
    return pack(PlainExperts(), Packing(Quantization.NF4))


def run_one_by_one(
    module: Any, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    up, down = (
        unpack_matrix(module, matrix, range(NUM_EXPERTS), dtype=torch.float32)
        for matrix in module.packed_matrices
    )
    total = torch.zeros_like(rows)
    for token, chosen in enumerate(ids.tolist()):
        for rank, expert in enumerate(chosen):
            gate, value = (up[expert] @ rows[token]).chunk(2)
            output = down[expert] @ (nn.functional.silu(gate) * value)
            total[token] += weights[token, rank] * output
    return total


@pytest.mark.parametrize("chunk_bytes", [1, 2 * INNER * WIDTH * 4 * 3, 2**28])
def test_only_experts_that_are_hit_are_dequantized_in_parts_of_bounded_size(
    packed: Any, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHUNK_BYTES", (chunk_bytes, chunk_bytes))
    seen: dict[str, list[int]] = {"gate_up_proj": [], "down_proj": []}

    def unpack(
        module: nn.Module, matrix: ExpertMatrix, experts: Sequence[int], *, dtype: torch.dtype
    ) -> torch.Tensor:
        matrices = unpack_matrix(module, matrix, experts, dtype=dtype)
        assert len(experts) == 1 or matrices.nbytes <= chunk_bytes
        seen[matrix.name] += experts
        return matrices

    monkeypatch.setattr(running, "unpack_matrix", unpack)
    rows, weights = torch.randn(5, WIDTH), torch.rand(5, 2)
    ids = torch.tensor([[3, 7], [7, 0], [11, 3], [7, 3], [0, 4]])
    with torch.inference_mode():
        output = packed(rows, ids, weights)
    assert list(seen.values()) == [[0, 3, 4, 7, 11]] * 2
    expected = run_one_by_one(packed, rows, ids, weights)
    assert torch.allclose(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_experts_that_get_rows_of_zeros_only_are_not_dequantized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    module = pack(ScaledRowsExperts(), Packing(Quantization.NF4))
    seen: set[int] = set()

    def unpack(
        module: nn.Module, matrix: ExpertMatrix, experts: Sequence[int], *, dtype: torch.dtype
    ) -> torch.Tensor:
        seen.update(experts)
        return unpack_matrix(module, matrix, experts, dtype=dtype)

    monkeypatch.setattr(running, "unpack_matrix", unpack)
    rows = torch.randn(3, WIDTH)
    scaled = torch.zeros(NUM_EXPERTS, 3, WIDTH)
    scaled[7, 0], scaled[2, 1:] = rows[0], rows[1:]
    with torch.inference_mode():
        output = module(scaled.view(-1, WIDTH)).view_as(scaled)
    ids = torch.tensor([[7], [2], [2]])
    expected = run_one_by_one(module, rows, ids, torch.ones(3, 1))
    assert torch.allclose(output.sum(dim=0), expected, rtol=1e-5, atol=1e-3)
    assert seen == {2, 7}
    assert output.any(dim=2).nonzero().tolist() == [[2, 1], [2, 2], [7, 0]]


def test_no_tokens_and_ids_without_matrices_give_zeros(packed: Any) -> None:
    empty = packed(torch.ones(0, WIDTH), torch.ones(0, 2, dtype=torch.long), torch.ones(0, 2))
    assert empty.shape == (0, WIDTH)
    ids = torch.full((2, 2), NUM_EXPERTS)
    assert not packed(torch.ones(2, WIDTH), ids, torch.ones(2, 2)).any()


def test_gradients_pass_through_to_hidden_states(packed: Any) -> None:
    rows = torch.randn(3, WIDTH, requires_grad=True)
    ids, weights = torch.tensor([[1, 2], [2, 3], [5, 1]]), torch.rand(3, 2)
    packed(rows, ids, weights).sum().backward()
    found = rows.grad
    plain = rows.detach().requires_grad_()
    run_one_by_one(packed, plain, ids, weights).sum().backward()
    assert found is not None
    assert plain.grad is not None
    assert torch.allclose(found, plain.grad, rtol=1e-4, atol=1e-3)


def test_scales_stay_in_float32_when_the_model_is_converted(packed: Any) -> None:
    before = packed.gate_up_proj_absmax.clone()
    packed.to(torch.bfloat16)
    assert packed.gate_up_proj_absmax.dtype is torch.float32
    assert torch.equal(packed.gate_up_proj_absmax, before)
