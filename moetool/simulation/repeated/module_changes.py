"""Changes that a layer makes to its own modules in a call, such as a router held in another dtype."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.simulation.repeated.fingerprints import Difference, Holding, list_holdings
from moetool.simulation.repeated.templates import StandIns, TemplateMaker

_ABSENT = object()


@dataclass(frozen=True)
class _Change:
    """A value that replaced an earlier one.

    Attributes:
        path: The module's path in the layer.
        holding: Whether it is an attribute, a parameter or a buffer.
        name: Its name in the module.
        template: The template of the new value.
    """

    path: str
    holding: Holding
    name: str
    template: Any


@dataclass(frozen=True)
class ModuleChanges:
    """Templates of the values that a layer's modules hold after a call but not before."""

    changes: tuple[_Change, ...] = ()

    @property
    def paths(self) -> frozenset[str]:
        """Paths in the layer of the modules that change."""
        return frozenset(change.path for change in self.changes)

    def apply(self, layer: nn.Module, stand_ins: StandIns) -> None:
        """Change another layer's modules in the same way."""
        for change in self.changes:
            holding = change.holding.find_in(layer.get_submodule(change.path))
            value = stand_ins.make(change.template)
            if change.holding is Holding.PARAMETERS:
                value = nn.Parameter(value, requires_grad=holding[change.name].requires_grad)
            holding[change.name] = value


NO_CHANGES = ModuleChanges()


@dataclass(frozen=True)
class _ModuleState:
    module: nn.Module
    held: Mapping[Holding, Mapping[str, Any]]


class LayerState:
    """The values that a layer's modules hold at one time.

    Args:
        paths: Paths of the modules in question; None for all.
    """

    def __init__(self, layer: nn.Module, *, paths: Collection[str] | None = None) -> None:
        self._states = {
            path: _ModuleState(module, list_holdings(module))
            for path, module in layer.named_modules()
            if paths is None or path in paths
        }

    def find_changes(
        self, maker: TemplateMaker, differences: Sequence[Difference]
    ) -> ModuleChanges | None:
        """Return the changes since then; None if another layer can't be changed in the same way.

        Args:
            maker: Makes the templates.
            differences: Where the layer's fingerprint differs from the one it had then.
        """
        found = []
        for path, holding, name in differences:
            state = self._states[path]
            before = state.held[holding].get(name, _ABSENT)
            after = holding.find_in(state.module).get(name, _ABSENT)
            # A value that was removed or changed in place has no template.
            if after is _ABSENT or after is before or not maker.can_make(after):
                return None
            if holding is Holding.PARAMETERS and not isinstance(before, torch.Tensor):
                return None
            found.append(_Change(path, holding, name, maker.make(after)))
        return ModuleChanges(tuple(found))

    def restore(self) -> None:
        """Put back the values that the modules held then."""
        for state in self._states.values():
            now = list_holdings(state.module)
            for holding, before in state.held.items():
                current = holding.find_in(state.module)
                for name in now[holding].keys() - before.keys():
                    del current[name]
                current.update(before)
