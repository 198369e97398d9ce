"""An experts module that can be packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.quantizing.layout import find_matrices
from moetool.quantizing.loading.packed_modules import pack_module
from moetool.quantizing.packing import Packing

NUM_EXPERTS, WIDTH, INNER = 12, 64, 64


class PlainExperts(nn.Module):
    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.num_experts = NUM_EXPERTS
        self.gate_up_proj = nn.Parameter(torch.randn(NUM_EXPERTS, 2 * INNER, WIDTH))
        self.down_proj = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, INNER))
        self.act_fn = activation or nn.SiLU()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        del hidden_states, top_k_index, top_k_weights
        raise AssertionError("packed experts run other code")


def pack(module: PlainExperts, packing: Packing) -> Any:
    """Pack a module in place, and return it."""
    matrices = find_matrices(module)
    assert matrices is not None
    tensors = {
        name: tensor
        for matrix in matrices
        for name, tensor in packing.quantize(module.get_parameter(matrix.name), matrix).items()
    }
    pack_module(module, matrices, packing)
    for name, tensor in tensors.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return module
