"""Outcomes of the layers that ran, found again by a description of the call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from moetool.anatomy.structure.model_modules import KnownModules, ModelModules
from moetool.simulation.repeated.cache_slots import SlotTemplates
from moetool.simulation.repeated.fingerprints import Fingerprints, OfLayer, find_layer_indices
from moetool.simulation.repeated.module_changes import ModuleChanges


@dataclass(frozen=True)
class Outcome:
    """The values that a layer that ran left behind, and its effects.

    Attributes:
        result: The template of its forward's result.
        slots: The templates of its entries in the cache.
        changes: Its changes to its own modules.
        kind: The kind of layer that it is after these changes.
        done: The record of each observer.
    """

    result: Any
    slots: SlotTemplates
    changes: ModuleChanges
    kind: int
    done: tuple[Any, ...]


@dataclass(frozen=True)
class Layer:
    """A layer whose work may be the same as another's.

    Attributes:
        path: Its path in the model.
        forward: Its own forward.
    """

    path: str
    module: nn.Module
    forward: Callable[..., Any]


class LayerOutcomes:
    """The outcomes of the layers of one model, kept for further runs of the same model.

    Runs can share outcomes if the model is the same at the start of each, and records of one run's
    observers have the same meaning in the others.

    Attributes:
        fingerprints: Describes the layers and their arguments.
        repeated_paths: Paths of the layers that did not run in one call or more.
    """

    def __init__(self) -> None:
        self.fingerprints = Fingerprints()
        self.repeated_paths: set[str] = set()
        self._outcomes: dict[Hashable, Outcome] = {}
        self._kinds: dict[OfLayer, int] = {}
        self._fingerprint_of: list[OfLayer] = []
        self._kind_at_start: dict[str, int] = {}
        self._indices: dict[str, tuple[int, ...]] = {}
        self._modules: dict[str, KnownModules] = {}

    def find(self, key: Hashable) -> Outcome | None:
        """Return the outcome of a call like the one that a key describes."""
        return self._outcomes.get(key)

    def keep(self, key: Hashable, outcome: Outcome) -> None:
        """Keep the outcome of a call."""
        self._outcomes[key] = outcome

    def find_indices(self, layer: Layer) -> tuple[int, ...]:
        """Return the layer indices that a layer's modules carry."""
        if layer.path not in self._indices:
            self._indices[layer.path] = find_layer_indices(self.find_modules(layer))
        return self._indices[layer.path]

    def find_modules(self, layer: Layer) -> ModelModules:
        """Return the modules of a layer as they are now."""
        return self._modules.setdefault(layer.path, KnownModules()).of(layer.module)

    def describe(self, layer: Layer) -> OfLayer:
        """Return the fingerprint of a layer as it is now."""
        return self.fingerprints.of_layer(self.find_modules(layer))

    def find_kind_at_start(self, layer: Layer) -> int:
        """Return the kind of a layer that has not run yet."""
        if layer.path not in self._kind_at_start:
            self._kind_at_start[layer.path] = self.find_kind(self.describe(layer))
        return self._kind_at_start[layer.path]

    def forget_kind_at_start(self, layer: Layer) -> None:
        """Examine a layer again at the start of the next run."""
        self._kind_at_start.pop(layer.path, None)

    def find_kind(self, fingerprint: OfLayer) -> int:
        """Return the number that layers with a fingerprint have in common."""
        kind = self._kinds.setdefault(fingerprint, len(self._kinds))
        if kind == len(self._fingerprint_of):
            self._fingerprint_of.append(fingerprint)
        return kind

    def fingerprint_of(self, kind: int) -> OfLayer:
        """Return the fingerprint of a kind of layer."""
        return self._fingerprint_of[kind]
