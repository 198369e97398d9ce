"""States of torch's random generators, so that a second run draws the numbers of the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def list_devices(module: nn.Module) -> list[torch.device]:
    """Return the devices of a module's parameters that have a random generator apart from the CPU's."""
    devices = {parameter.device for parameter in module.parameters()}
    return sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)


@contextmanager
def kept_states(devices: list[torch.device]) -> Iterator[None]:
    """Put the generators back into the states that they are in now."""
    states = read_states(devices)
    try:
        yield
    finally:
        restore_states(devices, states)


def read_states(devices: list[torch.device]) -> list[torch.Tensor]:
    """Return the states of the CPU's generator and those of devices."""
    others = [torch.get_device_module(device).get_rng_state(device) for device in devices]
    return [torch.get_rng_state(), *others]


def restore_states(devices: list[torch.device], states: list[torch.Tensor]) -> None:
    """Put the states back that `read_states` returned."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, device)
