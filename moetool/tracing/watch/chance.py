"""Random numbers that a layer's router or experts draw, as dropout and jitter do in training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moetool.anatomy.moe_layers import MoeLayer
from moetool.errors import UntraceableError
from moetool.tracing.compiled import as_written

_MIXER = re.compile(r"attn|attention|mamba|mixer|conv", re.IGNORECASE)


class ChanceWatch:
    """Compares the state of torch's random generators before and after each routed layer.

    Whatever draws from them is found so: modules, functions, and noise that a block makes itself.
    Only layers in training mode are looked at, call by call.

    Args:
        model: The recorded model.
        layers: Routed layers of it.
    """

    def __init__(self, model: nn.Module, layers: Iterable[MoeLayer]) -> None:
        self._modules = [
            (path, module) for layer in layers for path, module in _list_routing(model, layer)
        ]
        self._handles: list[RemovableHandle] = []
        self._before: dict[str, list[torch.Tensor]] = {}

    def begin(self) -> None:
        """Place hooks on the modules that are in training mode."""
        self.end()
        for path, module in self._modules:
            if module.training:
                self._handles += [
                    module.register_forward_pre_hook(as_written(self._keep(path))),
                    # Before other watches read what nothing can confirm.
                    module.register_forward_hook(as_written(self._compare(path)), prepend=True),
                ]

    def end(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before.clear()

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, _args: object) -> None:
            self._before[path] = _read_generators(module)

        return hook

    def _compare(self, path: str) -> Any:
        def hook(module: nn.Module, _args: object, _output: object) -> None:
            before, now = self._before.pop(path), _read_generators(module)
            if not all(torch.equal(*states) for states in zip(before, now, strict=True)):
                raise UntraceableError(
                    f"{path} draws random numbers in training mode, so that nothing can confirm "
                    "what is recorded of it.",
                    hint="Call model.eval() first, or set its dropout and jitter to 0.",
                )

        return hook


def _list_routing(model: nn.Module, layer: MoeLayer) -> Iterator[tuple[str, nn.Module]]:
    """Yield a layer's block, or, where that is a whole decoder layer, all of it but attention."""
    block = model.get_submodule(layer.block_path)
    children = dict(block.named_children())
    if not any(_MIXER.search(name) for name in children):
        yield layer.block_path, block
        return
    for name, child in children.items():
        if not _MIXER.search(name):
            yield f"{layer.block_path}.{name}".removeprefix("."), child


def _read_generators(module: nn.Module) -> list[torch.Tensor]:
    """Return the states of the generators from which a module may draw."""
    devices = {parameter.device for parameter in module.parameters()}
    return [
        torch.get_rng_state(),
        *(
            torch.get_device_module(device).get_rng_state(device)
            for device in sorted(devices, key=str)
            if device.type not in ("cpu", "meta")
        ),
    ]
