"""Run a skeleton whose modules lie on several devices, and part its memory by device.

accelerate's hooks move a module's arguments to its device before it runs, and the model's outputs
back to the first. Here a copy stands for each move, and each block belongs to the device of the module
that made it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.simulation.memory.timeline import Call, Event, Origin, Timeline
from moetool.simulation.meta.dispatch import find_local, map_only

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "addbmm", "_grouped_mm"})
_PRODUCT_WITH_BIAS = "addmm"
_MAIN = 0


class DeviceOfPath:
    """The device of each module and parameter by a map of some modules.

    Args:
        device_map: Devices by the path of a module; what it doesn't name is on the first device.
    """

    def __init__(self, device_map: Mapping[str, int]) -> None:
        self._device_map = device_map

    def find(self, path: str) -> int:
        """Return the device of a module or parameter."""
        while path:
            if path in self._device_map:
                return self._device_map[path]
            path = path.rpartition(".")[0]
        return self._device_map.get("", _MAIN)


@contextmanager
def moving_arguments(model: PreTrainedModel, device_map: Mapping[str, int]) -> Iterator[None]:
    """Copy the arguments of modules on other devices, as accelerate's hooks move them.

    Positional arguments come from the module that ran before, keyword arguments from the first
    device, which also gets the logits.
    """
    # The device of the hidden states.
    place = [_MAIN]
    wrapped: list[nn.Module] = []

    def wrap(module: nn.Module, device: int) -> None:
        forward, is_layer = module.forward, any(True for _ in module.parameters())

        @functools.wraps(forward)
        def moved(*args: Any, **kwargs: Any) -> Any:
            if device != (place[0] if is_layer else _MAIN):
                args = map_only(torch.Tensor, torch.clone, args)
            if device != _MAIN:
                kwargs = map_only(torch.Tensor, torch.clone, kwargs)
            if is_layer:
                place[0] = device
            return forward(*args, **kwargs)

        module.forward = moved
        wrapped.append(module)

    whole = model.forward

    @functools.wraps(whole)
    def returned(*args: Any, **kwargs: Any) -> Any:
        place[0] = _MAIN
        output = whole(*args, **kwargs)
        logits = getattr(output, "logits", None)
        if logits is not None and place[0] != _MAIN:
            output["logits"] = logits.clone()
        return output

    for path, device in device_map.items():
        if path:
            wrap(model.get_submodule(path), device)
    setattr(model, "forward", returned)  # noqa: B010 - mypy forbids assigning to a method
    wrapped.append(model)
    try:
        yield
    finally:
        for module in wrapped:
            del module.forward


def list_weight_bytes_on(model: nn.Module, devices: DeviceOfPath, device: int) -> list[int]:
    """Return the sizes of the storages of parameters and buffers on one device."""
    sizes: dict[int, int] = {}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for path, tensor in tensors:
        if devices.find(path) == device:
            storage = find_local(tensor).untyped_storage()
            sizes.setdefault(storage._cdata, storage.nbytes())
    return list(sizes.values())


def part_by_device(
    timeline: Timeline, devices: DeviceOfPath, device: int, *, workspace_bytes: int, lt_bytes: int
) -> Timeline:
    """Return the part of a timeline that is about one device.

    Args:
        timeline: The run on all devices.
        devices: The device of each module.
        device: The device whose blocks are kept.
        workspace_bytes: Memory that the first matrix product on a device takes for good.
        lt_bytes: Memory that the first product with a bias takes for good.
    """
    here = [devices.find(_join(origin)) == device for origin in timeline.origins]
    shared = {timeline.workspace_block, timeline.lt_workspace_block}
    events: list[Event] = []
    # Each device has its own workspaces; their blocks get numbers that no other block has.
    lacking = {_PRODUCTS: (-2, workspace_bytes), frozenset({_PRODUCT_WITH_BIAS}): (-3, lt_bytes)}
    if timeline.lt_workspace_block is None:
        lacking.popitem()
    taken: list[int] = []
    numbers = [0]
    # The number of events before each block of this device, and its size.
    births: dict[int, tuple[int, int]] = {}
    for block, num_bytes, origin in timeline.events:
        if block in shared:
            pass
        elif num_bytes < 0:
            if block in births:
                events.append(Event(block, num_bytes, origin))
        elif here[origin]:
            operation = timeline.origins[origin].operation
            for kinds in [kinds for kinds in lacking if operation in kinds]:
                own, size = lacking.pop(kinds)
                taken.append(own)
                events.append(Event(own, size, origin))
            births[block] = (len(numbers) - 1, num_bytes)
            events.append(Event(block, num_bytes, origin))
        numbers.append(len(events))
    return replace(
        timeline,
        events=tuple(events),
        calls=tuple(_part_call(call, births, numbers) for call in timeline.calls),
        workspace_block=-2 if -2 in taken else None,
        lt_workspace_block=-3 if -3 in taken else None,
    )


def _part_call(call: Call, births: Mapping[int, tuple[int, int]], numbers: Sequence[int]) -> Call:
    sizes = {
        block: births[block][1]
        for block in call.cache_blocks
        if block in births and births[block][0] < call.end_event
    }
    return Call(
        first_event=numbers[call.first_event],
        end_event=numbers[call.end_event],
        cache_blocks=frozenset(sizes),
        cache_bytes=sum(sizes.values()),
    )


def _join(origin: Origin) -> str:
    return ".".join(part for part in (origin.layer, origin.module) if part)
