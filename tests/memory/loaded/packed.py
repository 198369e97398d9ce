"""Tiny skeletons in any dtype, with some of their weights packed as quantized ones are."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from tests.simulation.skeletons import build_family_skeleton


class Packed(nn.Module):
    """A stand-in for a linear layer of 4 or 8 bits: packed weights and their scales."""

    def __init__(self, linear: nn.Module, *, dtype: torch.dtype, num_scales: int) -> None:
        super().__init__()
        num_bytes = linear.get_parameter("weight").numel()
        num_bytes = num_bytes // 2 if dtype is torch.uint8 else num_bytes
        packed = torch.empty((num_bytes, 1), dtype=dtype, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("absmax", torch.empty(num_scales, device="meta"))


def build_in(family: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a tiny family's skeleton, converted as a whole."""
    skeleton = build_family_skeleton(family)
    nn.Module.to(skeleton, dtype)
    return skeleton


def pack_queries(skeleton: PreTrainedModel, *, dtype: torch.dtype, num_scales: int) -> None:
    """Pack the query projections in all layers of a tiny Mixtral."""
    for layer in skeleton.model.layers:
        attention = layer.self_attn
        attention.q_proj = Packed(attention.q_proj, dtype=dtype, num_scales=num_scales)
