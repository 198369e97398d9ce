"""The place in a model where a run is, by which births are numbered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from threading import get_ident
from typing import Self

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.caches.offloaded import SideStream
from moetool.simulation.memory.timeline import Origins


class Places:
    """Follows a run through a model's modules and layers while it is entered.

    Attributes:
        layer: The path of the layer that runs; empty outside layers.

    Args:
        modules: The modules that are followed.
        origins: Numbers the places where blocks are born.
        stream: A stream other than the model's, on which some operations run.
    """

    def __init__(self, modules: ModelModules, origins: Origins, stream: SideStream | None) -> None:
        self.layer = ""
        self._origins = origins
        self._stream = stream
        self._paths = modules.path_by_id
        self._entered: list[str] = [""]
        self._thread = get_ident()
        # Asking `Origins` means making and hashing an `Origin` for each birth.
        self._numbers: dict[tuple[str, str, str, bool], int] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        # Hooks on each module would take seconds in models with thousands of experts.
        self._exit.callback(register_module_forward_pre_hook(self._enter_module).remove)
        self._exit.callback(
            register_module_forward_hook(self._leave_module, always_call=True).remove
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def number(self, operation: str) -> int:
        """Return the number of the current place, where an operation runs."""
        is_on_side = self._stream is not None and self._stream.is_current
        key = (self.layer, self._entered[-1], operation, is_on_side)
        number = self._numbers.get(key)
        if number is None:
            layer, path, _, _ = key
            if layer and path.startswith(layer):
                path = path[len(layer) + 1 :]
            number = self._origins.number(layer, path, operation, is_on_side=is_on_side)
            self._numbers[key] = number
        return number

    def find_in(self, layer: str) -> Mapping[int, int]:
        """Return the numbers of the same places in another layer."""
        return self._origins.find_in(layer)

    def find_operation(self, place: int) -> str:
        """Return the operation that runs at a place."""
        return self._origins.found[place].operation

    # Modules that other threads call meanwhile come here, too.

    def _enter_module(self, module: nn.Module, *_: object) -> None:
        if get_ident() == self._thread:
            self._entered.append(self._paths.get(id(module), self._entered[-1]))

    def _leave_module(self, *_: object) -> None:
        if get_ident() == self._thread:
            self._entered.pop()
