"""A small model whose layers do what a test asks of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

meta = partial(torch.empty, device="meta")


class Layer(nn.Module):
    """Projects; a test can add to its work.

    Args:
        index: Its index in the cache.
        does: Called with the layer and its arguments; what it returns is returned as well.
    """

    def __init__(self, index: int, does: Callable[..., Any]) -> None:
        super().__init__()
        self.layer_idx = index
        self.does = does
        self.inner = nn.ModuleDict({"projection": nn.Linear(8, 8)})
        self.kept: list[torch.Tensor] = []

    def forward(self, hidden: torch.Tensor, **given: Any) -> tuple[torch.Tensor, Any]:
        extra = self.does(self, hidden, **given)
        return torch.relu(self.inner["projection"](hidden)), extra


class Model(nn.Module):
    def __init__(self, does: Callable[..., Any], *, num_layers: int = 4) -> None:
        super().__init__()
        self.config: Any = PreTrainedConfig()
        with torch.device("meta"):
            self.layers = nn.ModuleList(Layer(index, does) for index in range(num_layers))
            self.head = nn.Linear(8, 2)

    def forward(self, *, is_kept: bool, **given: Any) -> object:
        hidden, kept = meta(1, 5, 8), []
        for layer in self.layers:
            hidden, extra = layer(hidden, **given)
            if is_kept:
                kept.append((hidden, extra))
        return self.head(hidden), kept


def do_nothing(*_: object, **__: object) -> None:
    """Leave it at the projection."""
