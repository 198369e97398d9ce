"""Changes that a layer makes to its own modules in a call, such as a router held in another dtype."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.simulation.repeated.fingerprints import Difference, list_own_attributes
from moetool.simulation.repeated.templates import StandIns, TemplateMaker


@dataclass(frozen=True)
class ModuleChanges:
    """Templates of what a layer's modules hold after a call and did not before.

    Attributes:
        attributes: Path of the module in the layer, name, and template of the new value.
        tensors: The same for parameters and buffers whose shape, strides or dtype changed.
    """

    attributes: tuple[tuple[str, str, Any], ...] = ()
    tensors: tuple[tuple[str, str, Any], ...] = ()

    @property
    def paths(self) -> frozenset[str]:
        """Paths of the modules that change."""
        return frozenset(path for path, _, _ in self.attributes + self.tensors)

    def apply(self, layer: nn.Module, stand_ins: StandIns) -> None:
        """Change another layer's modules in the same way."""
        for path, name, template in self.attributes:
            vars(layer.get_submodule(path))[name] = stand_ins.make(template)
        for path, name, template in self.tensors:
            _tensors_of(layer.get_submodule(path))[name].data = stand_ins.make(template)


NO_CHANGES = ModuleChanges()


@dataclass(frozen=True)
class _ModuleState:
    module: nn.Module
    attributes: Mapping[str, object]
    tensors: Mapping[str, torch.Tensor]
    data: Mapping[str, torch.Tensor]

    def holds(self, name: str, tensor: torch.Tensor) -> bool:
        """Return whether a parameter or buffer still has the memory and the form it had."""
        before = self.data[name]
        return (
            tensor is self.tensors[name]
            and (tensor.dtype, tensor.shape, tensor.stride())
            == (before.dtype, before.shape, before.stride())
            and _is_same_storage(tensor, before)
        )


class LayerState:
    """The state of a layer's modules at one time.

    Args:
        layer: The layer.
        paths: Paths of the modules in question; None for all.
    """

    def __init__(self, layer: nn.Module, *, paths: Collection[str] | None = None) -> None:
        self._layer = layer
        # Tensors made in inference mode could not take part in autograd once they are put back.
        with torch.inference_mode(False):
            self._states = {
                path: _take_state(module)
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
        attributes, tensors = [], []
        for path, names, has_other_tensors in differences:
            state = self._states[path]
            now = vars(state.module)
            for name in names:
                # What was changed in place, or taken away, has no template.
                if name not in now or now[name] is state.attributes.get(name, _ABSENT):
                    return None
                if not maker.can_make(now[name]):
                    return None
                attributes.append((path, name, maker.make(now[name])))
            if not has_other_tensors:
                continue
            now_tensors = _tensors_of(state.module)
            if now_tensors.keys() != state.tensors.keys():
                return None
            for name, tensor in now_tensors.items():
                if state.holds(name, tensor):
                    continue
                if tensor is not state.tensors[name] or _is_same_storage(tensor, state.data[name]):
                    return None
                tensors.append((path, name, maker.make(tensor)))
        return ModuleChanges(tuple(attributes), tuple(tensors))

    def restore(self) -> None:
        """Give the modules back the attributes and parameters that they had then."""
        with torch.inference_mode(False):
            for state in self._states.values():
                own = vars(state.module)
                for name in list_own_attributes(state.module).keys() - state.attributes.keys():
                    del own[name]
                own.update(state.attributes)
                for name, tensor in _tensors_of(state.module).items():
                    if tensor is state.tensors.get(name) and not state.holds(name, tensor):
                        tensor.data = state.data[name]


_ABSENT = object()


def _take_state(module: nn.Module) -> _ModuleState:
    tensors = _tensors_of(module)
    data = {name: tensor.data for name, tensor in tensors.items()}
    return _ModuleState(module, list_own_attributes(module), tensors, data)


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _is_same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
