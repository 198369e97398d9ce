"""Checks, before any weights load, that a model can be quantized where it shall be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from moetool.checkpoint.stated.quantization import find_method, find_stated, name_quantization
from moetool.errors import InputError, UsageError
from moetool.quantizing.choice import QuantizationChoice, choose_quantization
from moetool.quantizing.layout import list_converted_linears, list_packable
from moetool.quantizing.packing import BLOCK_SIZE, Packing
from moetool.registration import METHOD
from moetool.wording import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Outputs that bitsandbytes' fused kernel for the CPU takes at a time.
_CPU_TILE = 32


def check_quantizable(
    config: PreTrainedConfig,
    skeleton: PreTrainedModel,
    choice: QuantizationChoice,
    *,
    name: str,
    device_map: str | Mapping[str, Any] | None,
    computes: bool = True,
) -> None:
    """Check that a checkpoint can be quantized on its devices.

    Args:
        config: The checkpoint's configuration.
        skeleton: Its model on the meta device.
        choice: The format.
        name: The checkpoint's name.
        device_map: Devices of the weights, as accelerate takes them; None for any.
        computes: Whether the devices also run the model.

    Raises:
        InputError: The weights are quantized already.
        UsageError: bitsandbytes has no kernels for a device, or for a width of the model.
        MoetoolError: The experts can't be packed, see `list_packable`.
    """
    _check_plain(config, name, loads=computes)
    devices = list_device_types(device_map)
    _check_devices(devices)
    if choice.quantizes_experts:
        list_packable(skeleton, Packing(choice.quantization, choice.is_double_quantized))
    if computes and "cpu" in devices:
        _check_cpu_widths(skeleton, choice)


def check_requantized(
    config: PreTrainedConfig,
    skeleton: PreTrainedModel,
    *,
    device_map: str | Mapping[str, Any] | None,
) -> None:
    """Check that a checkpoint that moetool quantized can run on its devices.

    Args:
        config: The checkpoint's configuration.
        skeleton: Its model on the meta device.
        device_map: Devices of the weights, as accelerate takes them; None for any.

    Raises:
        InputError: The configuration states another quantization than moetool writes.
        UsageError: bitsandbytes has no kernels for a device, or for a width of the model.
    """
    choice = read_choice(config)
    if choice is None:
        return
    devices = list_device_types(device_map)
    _check_devices(devices)
    if "cpu" in devices:
        _check_cpu_widths(skeleton, choice)


def read_choice(config: PreTrainedConfig) -> QuantizationChoice | None:
    """Return the choice that a configuration written by moetool states; None for any other.

    Raises:
        InputError: It states none that there is.
    """
    stated = find_stated(config)
    if find_method(config) != METHOD:
        return None
    try:
        return choose_quantization(
            stated.get("quantization"),
            double_quantization=stated.get("double_quantization", False),
            quantize_experts=stated.get("quantize_experts", True),
        )
    except UsageError as error:
        raise InputError(
            f"config.json states a quantization that moetool doesn't write: {error.message}",
            hint="Run moetool quantize again.",
        ) from error


def list_device_types(device_map: str | Mapping[str, Any] | None) -> list[str]:
    """Return the types of the devices in a map, such as `cuda`; `disk` is one of them."""
    if device_map is None or isinstance(device_map, str):
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return ["cpu" if accelerator is None else accelerator.type]
    values = device_map.values()
    return list(dict.fromkeys(_find_type(device) for device in values))


def _find_type(device: object) -> str:
    if isinstance(device, int):
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return "cuda" if accelerator is None else accelerator.type
    if isinstance(device, torch.device):
        return device.type
    return str(device).partition(":")[0]


def _check_plain(config: PreTrainedConfig, name: str, *, loads: bool) -> None:
    if not find_stated(config):
        return
    stated = name_quantization(config.to_dict())
    raise InputError(
        f"The weights of {name} are quantized already{f' ({stated})' if stated else ''}: they "
        "can't be quantized again.",
        hint="Leave out --quantization to load them as they are, or name a checkpoint in bfloat16."
        if loads
        else "Name a checkpoint in bfloat16.",
    )


def _check_devices(devices: list[str]) -> None:
    if len(devices) > 1:
        raise UsageError(
            f"bitsandbytes quantizes no model that is spread over {' and '.join(devices)}.",
            hint="Use a device map of GPUs only, or --device cpu.",
        )
    import bitsandbytes

    library: Any = bitsandbytes
    device = devices[0]
    native = library.cextension.lib
    has_kernels = device in library.supported_torch_devices and (
        device != "cuda" or getattr(native, "compiled_with_cuda", False)
    )
    if not has_kernels:
        raise UsageError(
            f"bitsandbytes {library.__version__} has no kernels for {device} here.",
            hint="Leave out --quantization, or give --device cpu.",
        )


def _check_cpu_widths(skeleton: PreTrainedModel, choice: QuantizationChoice) -> None:
    """Check the widths of linear layers: some of bitsandbytes' 4-bit kernels for the CPU are wrong.

    Experts aren't computed with these kernels.
    """
    if not Packing(choice.quantization).is_4bit:
        return
    linears = list_converted_linears(skeleton)
    unfit = [
        f"{path} ({linear.weight.shape[0]:,} x {linear.weight.shape[1]:,})"
        for path, linear in linears
        if linear.weight.shape[1] % BLOCK_SIZE or linear.weight.shape[0] % _CPU_TILE
    ]
    if unfit:
        raise UsageError(
            f"bitsandbytes' 4-bit kernels for the CPU can't compute {number_of(len(unfit), 'layer')} "
            f"of {type(skeleton).__name__}: they need inputs in multiples of {BLOCK_SIZE} and "
            f"outputs in multiples of {_CPU_TILE}.",
            hint="Use --quantization int8, or a GPU.",
            facts=[f"seen: {words}" for words in unfit[:2]],
        )
