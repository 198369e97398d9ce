"""Low-rank adapters of linear layers, which compute as PEFT's `lora.Linear` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

# The factor on adapters takes a product whatever it is. PEFT's default: alpha 8 at rank 8.
_SCALE = 1.0


class AdaptedLinear(nn.Module):
    """A linear layer with an adapter: a product with a narrow matrix, and one with another.

    (..., width_in) -> (..., width_out)

    As in PEFT, the adapter is in float32 where the layer is in 16 bits, without dropout, and its
    output is added before the sum returns to the layer's dtype.
    """

    def __init__(self, base_layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        device = base_layer.weight.device
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False, device=device)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, changed by the adapter."""
        result: torch.Tensor = self.base_layer(rows)
        dtype = result.dtype
        rows = rows.to(self.lora_A.weight.dtype)
        result = result + self.lora_B(self.lora_A(rows)) * _SCALE
        result = result.to(dtype)
        return result  # noqa: RET504  (it would free the rows first)


@contextmanager
def adapted(model: nn.Module, paths: Sequence[str], *, rank: int) -> Iterator[None]:
    """Put adapters on linear layers, and take them off afterwards.

    Args:
        model: The model with these layers.
        paths: The paths of the layers.
        rank: The width between the two matrices of each adapter.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path in paths:
            parent_path, _, name = path.rpartition(".")
            parent, layer = model.get_submodule(parent_path), model.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            replaced.append((parent, name, layer))
            setattr(parent, name, AdaptedLinear(layer, rank))
        yield
    finally:
        for parent, name, layer in reversed(replaced):
            setattr(parent, name, layer)
