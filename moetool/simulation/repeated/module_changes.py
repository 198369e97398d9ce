"""Changes that a layer makes to its own modules in a call, such as a router held in another dtype."""

from __future__ import annotations

import weakref
from collections import UserDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.anatomy.structure.model_modules import ModelModules
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


class _Mark:
    """Recognizes a tensor, or a container of tensors, without keeping it alive."""

    def __init__(self, value: object) -> None:
        self.is_tensor = isinstance(value, torch.Tensor)
        self._id = id(value)
        # Containers have no weak references.
        self._reference = weakref.ref(value) if isinstance(value, torch.Tensor) else None

    def find(self) -> torch.Tensor | None:
        """Return the tensor; None if it is dead or was a container."""
        return None if self._reference is None else self._reference()

    def is_of(self, value: object) -> bool:
        """Return whether a value is the marked one.

        A container may have the address of a dead one, and then counts as the same.
        """
        return id(value) == self._id if self._reference is None else self._reference() is value


@dataclass(frozen=True)
class _ModuleState:
    """The values that a module holds at one time, or their marks.

    Attributes:
        held: The values by name.
        is_original: Whether the module has not changed before in the run.
    """

    module: nn.Module
    held: Mapping[Holding, Mapping[str, Any]]
    is_original: bool


class LayerState:
    """The values that a layer's modules hold at one time.

    A tensor that a layer makes and replaces in its next call must die then, so only the parameters
    and buffers that a layer started with are kept alive.

    Args:
        paths: Paths of the modules in question; None for all.
        changed: Modules that changed earlier in the run. An earlier state restores them.
    """

    def __init__(
        self,
        layer: ModelModules,
        *,
        paths: Collection[str] | None = None,
        changed: Collection[nn.Module] = (),
    ) -> None:
        self._states = {
            path: _ModuleState(
                module, _remember(module, is_original=module not in changed), module not in changed
            )
            for path, module in layer.by_path.items()
            if paths is None or path in paths
        }

    @property
    def original_modules(self) -> frozenset[nn.Module]:
        """The modules that this state restores."""
        return frozenset(state.module for state in self._states.values() if state.is_original)

    def find_replaced(self) -> set[Difference]:
        """Return the parameters and buffers that are no longer the same objects."""
        return {
            Difference(path, holding, name)
            for path, state in self._states.items()
            for holding in (Holding.PARAMETERS, Holding.BUFFERS)
            for name, before in state.held[holding].items()
            if not _is_same(before, holding.find_in(state.module).get(name, _ABSENT))
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
            if after is _ABSENT or _is_same(before, after) or not maker.can_make(after):
                return None
            if holding is Holding.PARAMETERS and not _was_tensor(before):
                return None
            found.append(_Change(path, holding, name, maker.make(after)))
        return ModuleChanges(tuple(found))

    def restore(self) -> bool:
        """Put back the values that the modules held then, and return whether all were alive."""
        is_complete = True
        for state in self._states.values():
            if not state.is_original:
                continue
            now = list_holdings(state.module)
            for holding, before in state.held.items():
                current = holding.find_in(state.module)
                for name in now[holding].keys() - before.keys():
                    del current[name]
                for name, value in before.items():
                    found = value.find() if isinstance(value, _Mark) else value
                    if not isinstance(value, _Mark) or found is not None:
                        current[name] = found
                    elif not value.is_of(current.get(name, _ABSENT)):
                        is_complete = False
        return is_complete


def _remember(module: nn.Module, *, is_original: bool) -> dict[Holding, dict[str, Any]]:
    """Return what a module holds, with marks of the tensors that must not be kept alive."""
    held = list_holdings(module)
    for holding, values in held.items():
        if is_original and holding is not Holding.ATTRIBUTES:
            continue
        for name, value in values.items():
            if _holds_tensor(value):
                values[name] = _Mark(value)
    return held


def _holds_tensor(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensor, value))
    if isinstance(value, dict | UserDict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, torch.Tensor)


def _is_same(before: object, after: object) -> bool:
    return before.is_of(after) if isinstance(before, _Mark) else before is after


def _was_tensor(before: object) -> bool:
    return before.is_tensor if isinstance(before, _Mark) else isinstance(before, torch.Tensor)
