"""The parts of parameters that belong to single experts, and what comes out if they are scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from moetool.anatomy.routing.shards import is_distributed


@dataclass(frozen=True)
class ExpertSlices:
    """A parameter that holds numbers of all experts, one expert after the other.

    Attributes:
        parameter: Any shape.
        num_experts: Number of experts.
    """

    parameter: nn.Parameter
    num_experts: int

    def scale(self, factors: torch.Tensor) -> torch.Tensor:
        """Return a copy of the numbers, those of each expert multiplied by its factor.

        Args:
            factors: # (num_experts,)
        """
        copy = self.parameter.detach().clone(memory_format=torch.contiguous_format)
        rows = copy.view(self.num_experts, -1)
        rows *= factors.to(rows)[:, None]
        return copy


def find_slices(experts: nn.Module, *, num_experts: int) -> list[ExpertSlices]:
    """Return the parameters in a module that hold numbers of all experts."""
    return [
        ExpertSlices(parameter, num_experts)
        for parameter in experts.parameters()
        if parameter.dim() >= 2
        and parameter.is_floating_point()
        and not is_distributed(parameter)
        and (parameter.shape[0] % num_experts == 0 or parameter.shape[:-2].numel() == num_experts)
    ]


@contextmanager
def scaled(slices: Sequence[ExpertSlices], factors: torch.Tensor) -> Iterator[None]:
    """Put scaled numbers in the place of parameters; their own memory is not written to.

    Args:
        slices: The parameters to scale.
        factors: Of each expert. # (num_experts,)
    """
    with ExitStack() as stack:
        for each in slices:
            stack.callback(setattr, each.parameter, "data", each.parameter.data)
            each.parameter.data = each.scale(factors)
        yield
