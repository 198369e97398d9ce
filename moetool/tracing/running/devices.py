"""Devices and device maps: chosen by name, checked against a model, named in the trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetool.checkpoint.config import first_line
from moetool.errors import UsageError
from moetool.printable import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Maps that accelerate makes itself, from the memory that is free.
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def choose_device(name: str | None, *, option: str = "--device") -> torch.device:
    """Return the named device; by default the first accelerator, else the CPU.

    Args:
        name: As torch spells it.
        option: The command-line option that named it, for the hint.

    Raises:
        UsageError: There is no such device.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("the meta device holds no data")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"There is no device '{name}' here.",
            hint=f"Leave {option} out to use a GPU if there is one, or give cpu, cuda, cuda:1, ….",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    return device


def choose_device_map(name: str) -> str | dict[str, Any]:
    """Return a device map for accelerate: one of its named maps, or the content of a JSON file.

    Args:
        name: One of `DEVICE_MAPS`, a device, or the path of a JSON file with an object that maps
            module paths to a device, a GPU's number, `cpu` or `disk`.

    Raises:
        UsageError: The name is none of these, or the file has no such object.
    """
    if name in DEVICE_MAPS:
        return name
    if not name.endswith(".json"):
        return {"": choose_device(name, option="--device-map")}
    try:
        device_map = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The device map '{name}' can't be read.",
            hint='Write it as JSON, as in {"model.embed_tokens": 0, "model.layers": "cpu"}.',
            facts=[f"seen: {first_line(error)}"],
        ) from error
    if not isinstance(device_map, dict) or not all(
        isinstance(device, str | int) and not isinstance(device, bool)
        for device in device_map.values()
    ):
        raise UsageError(
            f"The device map '{name}' is not an object of module paths and devices.",
            hint='Write it as JSON, as in {"model.embed_tokens": 0, "model.layers": "cpu"}.',
        )
    for device in dict.fromkeys(device_map.values()):
        if device != "disk":
            _check_device(device)
    return device_map


def check_device_map(device_map: str | Mapping[str, Any], model: nn.Module, *, name: str) -> None:
    """Check that a device map names a device for every tensor of a model, and nothing else.

    Args:
        device_map: As `choose_device_map` returns it.
        model: A loaded model or a skeleton.
        name: The name that the user gave, for errors.

    Raises:
        UsageError: A tensor has no device, or a path is not in the model.
    """
    if isinstance(device_map, str) or list(device_map) == [""]:
        return
    tensors = list(model.state_dict())
    # The model itself, '', may only be the single entry of a map.
    known = {*tensors, *(path for path, _ in model.named_modules())} - {""}
    faults = [
        *(f"not in the model: {path or repr(path)}" for path in device_map if path not in known),
        *(f"no device for: {tensor}" for tensor in tensors if not _covers(device_map, tensor)),
    ]
    if faults:
        raise UsageError(
            f"The device map '{name}' does not fit {type(model).__name__}.",
            hint="Name a device for each of its modules, as in the model's named_modules().",
            facts=faults[:3],
        )


def _covers(device_map: Mapping[str, Any], tensor: str) -> bool:
    return any(f"{tensor}.".startswith(f"{path}.") for path in device_map)


def _check_device(device: str | int) -> None:
    """Check that a device of a map, given by name or as a GPU's number, exists."""
    if isinstance(device, str):
        choose_device(device, option="--device-map")
        return
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or not 0 <= device < torch.accelerator.device_count():
        raise UsageError(
            f"There is no GPU {printable(device, max_length=30)} here.",
            hint='Give the number of an existing GPU, "cpu" or "disk" in the device map.',
        )


def find_input_device(model: nn.Module) -> torch.device:
    """Return the device for a model's inputs: that of its first weight that is not offloaded."""
    devices = (parameter.device for parameter in model.parameters())
    real = next((device for device in devices if device.type != "meta"), None)
    return real or torch.device("cpu")


def name_devices(model: PreTrainedModel) -> str:
    """Return the devices of a model's weights, as in `cuda:0, cpu, disk`."""
    device_map: dict[str, Any] = getattr(model, "hf_device_map", None) or {"": model.device}
    names = (
        f"cuda:{device}" if isinstance(device, int) else str(device)
        for device in device_map.values()
    )
    return ", ".join(dict.fromkeys(names))
