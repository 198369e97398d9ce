"""A small model of equal layers, and an observer of those that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig

from moetool.simulation.repeated.observers import LayerVisit
from moetool.simulation.repeated.repeated_layers import RepeatedLayers

NUM_LAYERS = 4


class Layer(nn.Module):
    """Projects, keeps keys in the cache, and returns its mask."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int | None) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.projection = nn.Linear(8, 8)
        self.act = torch.relu
        self.keeps_keys = True
        self.seen: list[int] = []
        self.does: Callable[..., object] = _do_nothing

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        mask: Any = None,
        cache: DynamicCache | None = None,
        **given: Any,
    ) -> Any:
        ran.append(-1 if self.layer_idx is None else self.layer_idx)
        self.does(self, hidden, cache=cache, **given)
        hidden = self.act(self.projection(hidden))
        if cache is not None and self.layer_idx is not None and self.keeps_keys:
            keys = hidden[:, None]
            cache.update(keys, keys, self.layer_idx)
        return hidden, mask


ran: list[int] = []


def _do_nothing(*_: object, **__: object) -> None:
    """Stand for whatever else a layer may do."""


class Model(nn.Module):
    def __init__(self, num_layers: int = NUM_LAYERS) -> None:
        super().__init__()
        self.config: Any = PreTrainedConfig()
        self.config.num_hidden_layers = num_layers
        with torch.device("meta"):
            self.layers = nn.ModuleList(Layer(self.config, index) for index in range(num_layers))

    def forward(self, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        for layer in self.layers:
            hidden, _ = layer(hidden, **given)
        return hidden


class Observer:
    """Counts layers, run or not.

    Attributes:
        num_layers: How many there were.
        begun: The visits of those that ran.
        repeated: The visits of those that didn't.
        left: Of those that ran, what they left behind.
        stand_ins: Of those that didn't, what stands for it.
    """

    def __init__(self) -> None:
        self.num_layers = 0
        self.begun: list[LayerVisit] = []
        self.repeated: list[LayerVisit] = []
        self.left: list[list[torch.Tensor]] = []
        self.stand_ins: list[dict[int, torch.Tensor]] = []

    def describe(self, visit: LayerVisit) -> object:
        """Return nothing: layers differ only by what all observers distinguish."""

    def begin_layer(self, visit: LayerVisit) -> int:
        self.begun.append(visit)
        return self.num_layers

    def end_layer(self, mark: int, left: Sequence[torch.Tensor]) -> int | None:
        self.left.append(list(left))
        self.num_layers += 1
        return self.num_layers - mark

    @contextmanager
    def repeat_layer(
        self, visit: LayerVisit, done: int, left: Mapping[int, torch.Tensor]
    ) -> Iterator[None]:
        assert not left
        yield
        self.repeated.append(visit)
        self.stand_ins.append(dict(left))
        self.num_layers += done


def run(model: Model, *, length: int = 5, **given: Any) -> list[int]:
    """Return the layers that ran."""
    ran.clear()
    observer = Observer()
    hidden = torch.empty(1, length, 8, device="meta")
    with torch.inference_mode(), RepeatedLayers(model, observers=[observer]) as layers:
        output = model(hidden, **given)
    assert output.shape == hidden.shape
    assert layers.num_run == len(ran)
    assert layers.num_run + layers.num_repeated == len(model.layers)
    return list(ran)


def layer_of(model: Model, index: int) -> Any:
    return model.layers[index]


def let_each(model: Model, does: Callable[..., object]) -> None:
    """Make each layer do something else in its forward."""
    for index in range(len(model.layers)):
        layer_of(model, index).does = does


def give_a_buffer(layer: Any) -> None:
    layer.register_buffer("scale", torch.empty(3, device="meta"))
