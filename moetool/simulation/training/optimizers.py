"""Optimizers on the meta device, as they allocate memory on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from moetool.simulation.training.optimizer_kinds import Optimizer

# bitsandbytes' defaults.
_SMALLEST_IN_8_BITS = 4096
_VALUES_PER_BLOCK = 256
_VALUES_OF_A_BYTE = 256


def make_optimizer(
    kind: Optimizer, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Return an optimizer of some parameters on the meta device."""
    # torch chooses `foreach` for parameters on a GPU.
    if kind is Optimizer.ADAMW:
        return torch.optim.AdamW(parameters, foreach=True)
    if kind is Optimizer.SGD:
        return torch.optim.SGD(parameters, foreach=True)
    return BlockwiseAdamW(parameters)


class BlockwiseAdamW(torch.optim.Optimizer):
    """The states of bitsandbytes' AdamW8bit, whose steps take no memory beyond them.

    Each parameter has two bytes for each value, and two float32 for each block of 256. Those with
    fewer than 4,096 values have two float32 for each value (`Optimizer2State.init_state`).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {})
        self._maps: tuple[torch.Tensor, ...] = ()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the states of parameters that have a gradient and no states yet."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = self._make_states(parameter)

    def _make_states(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        count, device = parameter.numel(), parameter.device
        if count < _SMALLEST_IN_8_BITS:
            return {
                name: torch.zeros_like(parameter, dtype=torch.float32)
                for name in ("state1", "state2")
            }
        if not self._maps:
            self._maps = tuple(torch.empty(_VALUES_OF_A_BYTE, device=device) for _ in range(2))
        num_blocks = -(-count // _VALUES_PER_BLOCK)
        states: dict[str, torch.Tensor] = {}
        for number, values in enumerate(self._maps, start=1):
            states[f"state{number}"] = torch.zeros_like(parameter, dtype=torch.uint8)
            states[f"qmap{number}"] = values
        for number in (1, 2):
            states[f"absmax{number}"] = torch.zeros(num_blocks, device=device)
        return states
