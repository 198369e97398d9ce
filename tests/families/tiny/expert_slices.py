"""Stretches of memory that hold the weights of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tests.families.tiny.dense_reference import separate_experts


@dataclass(frozen=True)
class Slices:
    """Equally long stretches of memory, one after the other, and the expert of each.

    Attributes:
        projection: The parameter that they are of, named alike for every expert.
        start: Address of the first, in bytes.
        step: Length of each, in bytes.
        experts: Whose each is.
    """

    projection: str
    start: int
    step: int
    experts: tuple[int, ...]

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.start + self.step * len(self.experts)

    def find_experts(self, matrix: torch.Tensor) -> tuple[int, ...]:
        """Return the experts whose slices a matrix covers: only one unless an expert is a row."""
        extent = sum(
            (size - 1) * stride for size, stride in zip(matrix.shape, matrix.stride(), strict=True)
        )
        first = matrix.data_ptr() - self.start
        last = first + extent * matrix.element_size()
        assert last < self.step * len(self.experts), "a product reads beyond the experts' weights"
        return self.experts[first // self.step : last // self.step + 1]


def find_slices(experts: nn.Module, path: str) -> list[Slices]:
    """Return where the weights of a layer's experts are.

    Args:
        experts: The layer's experts module.
        path: Its path, for messages.
    """
    slices = []
    for name, ids, parameter in expert_parameters(experts):
        assert parameter.is_contiguous(), f"{path}.{name} has gaps"
        step = parameter.numel() // len(ids) * parameter.element_size()
        slices.append(Slices(name, parameter.data_ptr(), step, ids))
    assert slices, f"{path} holds no expert weights"
    return slices


def expert_parameters(
    experts: nn.Module,
) -> Iterator[tuple[str, tuple[int, ...], nn.Parameter]]:
    """Yield the matrices of a layer's experts: name, the experts in it in order, parameter."""
    if isinstance(experts, nn.ModuleDict | nn.ModuleList):
        for expert, module in enumerate(separate_experts(experts)):
            for name, parameter in module.named_parameters():
                if parameter.dim() == 2:
                    yield name, (expert,), parameter
        return
    stacked = {name: p for name, p in experts.named_parameters() if p.dim() == 3}
    for name, parameter in stacked.items():
        yield name, tuple(range(len(parameter))), parameter
    if not stacked:
        num_experts = experts.num_experts
        assert isinstance(num_experts, int)
        for name, parameter in experts.named_parameters():
            # DBRX stacks along the rows of matrices, Doge keeps its experts as rows of embeddings.
            if name.startswith("mlp.") or "_embed." in name:
                yield name, tuple(range(num_experts)), parameter
