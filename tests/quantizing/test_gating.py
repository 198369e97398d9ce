"""The way an experts module gates its products is found by running its own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from moetool.quantizing.gating import Gating, find_gating
from tests.quantizing.plain_experts import PlainExperts

SILU = Gating(is_interleaved=False, limit=None, alpha=1.0, shift=0.0)
Gate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class OwnGate(PlainExperts):
    """Experts with their own gate, and a limit and a factor under names that mean nothing."""

    def __init__(self, apply: Gate, *, is_interleaved: bool = False) -> None:
        super().__init__()
        self.a, self.b = 7.0, 1.702
        self.function, self.is_interleaved = apply, is_interleaved

    def _apply_gate(self, rows: torch.Tensor) -> torch.Tensor:
        if self.is_interleaved:
            return self.function(rows[..., ::2], rows[..., 1::2])
        return self.function(*rows.chunk(2, dim=-1))


def gate_like_gpt_oss(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    gate, value = gate.clamp(max=7.0), value.clamp(-7.0, 7.0)
    return (value + 1) * gate * torch.sigmoid(1.702 * gate)


def gate_up_to_a_limit(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(gate.clamp(max=7.0)) * value.clamp(-7.0, 7.0)


def limit_the_gated(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(gate).clamp(max=7.0) * value.clamp(-7.0, 7.0)


def limit_far_away(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(gate) * value.clamp(-1000.0, 1000.0)


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_limits_factors_and_shifts_are_found(is_interleaved: bool) -> None:
    module = OwnGate(gate_like_gpt_oss, is_interleaved=is_interleaved)
    assert find_gating(module) == Gating(is_interleaved, limit=7.0, alpha=1.702, shift=1.0)
    limited = OwnGate(gate_up_to_a_limit, is_interleaved=is_interleaved)
    assert find_gating(limited) == Gating(is_interleaved, limit=7.0, alpha=1.0, shift=0.0)


def test_modules_on_the_meta_device_are_tried_on_the_cpu() -> None:
    assert find_gating(PlainExperts().to("meta")) == SILU


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.alpha * x)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), Learned()], ids=repr)
def test_other_activations_are_left_to_the_module(activation: nn.Module) -> None:
    assert find_gating(PlainExperts(activation)) is None


@pytest.mark.parametrize("apply", [limit_the_gated, limit_far_away])
def test_other_gates_are_left_to_the_module(apply: Gate) -> None:
    assert find_gating(OwnGate(apply)) is None


def test_a_gate_that_reads_tensors_is_left_to_the_module() -> None:
    module = PlainExperts()
    module.register_buffer("scale", torch.ones(()))
    assert find_gating(module) is None


def test_experts_without_gates_have_none() -> None:
    module: Any = PlainExperts()
    module.up_proj = module.gate_up_proj
    del module.gate_up_proj
    assert find_gating(module) is None
