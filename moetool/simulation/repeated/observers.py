"""Observers of layers and their parts, which measure those that run and those that don't."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class LayerVisit:
    """A call of a layer.

    Attributes:
        path: The layer's path in the model.
        found: The tensors among its arguments and in its slot of the cache.
    """

    path: str
    found: tuple[torch.Tensor, ...]


class LayerObserver(Protocol):
    """Measures the work of layers, including those that don't run."""

    def describe(self, visit: LayerVisit) -> Hashable:
        """Return what else must be equal for two visits to be the same to this observer."""

    def begin_layer(self, visit: LayerVisit) -> Any:
        """Return a mark of the beginning of a layer."""

    def end_layer(self, mark: Any, left: Sequence[torch.Tensor]) -> Any:
        """Return a record of the work since a mark; None if it can't stand for another layer's.

        Args:
            mark: The mark of the layer's beginning.
            left: The tensors that the layer made and left behind.
        """

    def repeat_layer(
        self, visit: LayerVisit, done: Any, left: Mapping[int, torch.Tensor]
    ) -> AbstractContextManager[object]:
        """Record the work of an earlier layer as that of another.

        Args:
            visit: The layer's call.
            done: The record of the earlier layer.
            left: The stand-ins for the tensors that the layer would leave behind, by index in the
                sequence that `end_layer` was given. They are complete when the context exits.
        """


class PartObserver(LayerObserver, Protocol):
    """Measures the work of parts of layers as well."""

    def begin_part(self, visit: LayerVisit) -> Any:
        """Return a mark of the beginning of a part of the layer that runs.

        Args:
            visit: The part's call, with the path of the layer.
        """

    def end_part(self, mark: Any, left: Sequence[torch.Tensor]) -> Any:
        """Return a record of the work since a mark; None if it can't stand for another part's.

        Such a record is also one of a layer's work, and is repeated by `repeat_layer`.

        Args:
            mark: The mark of the part's beginning.
            left: The tensors that the part made and left behind.
        """

    def can_repeat_part(self, done: Any) -> bool:
        """Return whether the layer that runs may do an earlier part's work."""
