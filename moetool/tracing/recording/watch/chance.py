"""Random numbers that experts draw while they train, as dropout does.

Numbers that a router draws, such as jitter, go into a decision that the experts receive and carry
out, and that is recorded. Numbers that experts draw come later: their outputs then confirm nothing,
where these are what confirms a decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import is_called, join_path
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.separate.random_states import list_devices, read_states


class ChanceWatch:
    """Compares the state of torch's random generators before and after experts run.

    This finds whatever draws from them, modules and functions. Only experts in training mode are
    watched, which is decided at each call.

    Args:
        model: The recorded model.
        layers: The routed layers to watch.
        runs_again: Whether experts run again for their saliency.
    """

    def __init__(
        self, model: nn.Module, layers: Iterable[MoeLayer], *, runs_again: bool = False
    ) -> None:
        # Blocks of other rules run again with the same random numbers, without their experts or with
        # what these drew.
        proven = () if runs_again else (RoutingRule.OPERATIONS, RoutingRule.SEPARATE_EXPERTS)
        self._modules = [
            (path, module)
            for layer in layers
            if layer.rule not in proven
            for path, module in _list_experts(model, layer)
        ]
        self._hooks = Hooks()
        self._before: dict[str, list[torch.Tensor]] = {}

    def begin(self) -> None:
        """Place hooks on the modules that are in training mode."""
        self.end()
        for path, module in self._modules:
            if module.training:
                self._hooks.before(module, self._keep(path))
                # First, because other watches would read what nothing can confirm.
                self._hooks.after(module, self._compare(path), prepend=True)

    def end(self) -> None:
        """Remove every hook."""
        self._hooks.remove()
        self._before.clear()

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, _args: object) -> None:
            self._before[path] = read_states(list_devices(module))

        return hook

    def _compare(self, path: str) -> Any:
        def hook(module: nn.Module, _args: object, _output: object) -> None:
            before, now = self._before.pop(path), read_states(list_devices(module))
            if not all(torch.equal(*states) for states in zip(before, now, strict=True)):
                raise UntraceableError(
                    f"{path} draws random numbers in training mode, so that its output confirms "
                    "no decision.",
                    hint="Call model.eval() first, or set the dropout of its experts to 0.",
                )

        return hook


def _list_experts(model: nn.Module, layer: MoeLayer) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that run a layer's experts: one for all, or those of a list."""
    if layer.members:
        for path in (
            join_path(layer.block_path, path) for paths in layer.members for path in paths
        ):
            yield path, model.get_submodule(path)
        return
    experts = model.get_submodule(layer.experts_path)
    if is_called(experts):
        yield layer.experts_path, experts
        return
    for name, expert in experts.named_children():
        yield f"{layer.experts_path}.{name}", expert
