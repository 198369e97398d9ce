"""Quantization while loading: whether the weights will fit, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from moetool.anatomy.skeleton.build import find_dtype
from moetool.checkpoint.stated.quantization import find_method
from moetool.errors import OutOfMemoryError
from moetool.memory.machine.host_memory import find_available_bytes
from moetool.quantizing.checks import check_quantizable
from moetool.quantizing.choice import QuantizationChoice
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_loadable(
    config: PreTrainedConfig,
    skeleton: PreTrainedModel,
    choice: QuantizationChoice,
    *,
    name: str,
    device_map: str | Mapping[str, Any] | None,
    dtype: str | None,
) -> None:
    """Check that a checkpoint can be quantized, and that its weights fit while they load.

    Args:
        config: The checkpoint's configuration.
        skeleton: Its model on the meta device.
        choice: The format.
        name: The checkpoint's name.
        device_map: Devices of the weights, as accelerate takes them.
        dtype: Of weights that aren't quantized; None for the checkpoint's own.

    Raises:
        OutOfMemoryError: The device has too little memory.
        MoetoolError: See `check_quantizable`.
    """
    check_quantizable(config, skeleton, choice, name=name, device_map=device_map)
    device = device_map.get("") if isinstance(device_map, Mapping) else None
    free = _find_free_bytes(device)
    if free is None:
        return
    from moetool.quantizing.sizes import plan_bytes

    loaded_dtype = getattr(torch, dtype) if dtype else find_dtype(config) or torch.float32
    planned = plan_bytes(skeleton, choice, dtype=loaded_dtype)
    needed = planned.total + _count_while_loading(skeleton, choice, loaded_dtype)
    if needed > free:
        raise OutOfMemoryError(
            f"{name} takes {format_bytes(planned.total)} in {choice}, up to {format_bytes(needed)} "
            f"while it loads, and {device} has {format_bytes(free)} free.",
            hint="Use --device-map auto with several GPUs, or a device with more memory.",
        )


def _find_free_bytes(device: object) -> int | None:
    """Return the free memory of a whole model's device; None if it is unknown or there are more."""
    kind = torch.device(device) if isinstance(device, str | int) else device
    if not isinstance(kind, torch.device):
        return None
    if kind.type == "cpu":
        return find_available_bytes()
    return int(torch.cuda.mem_get_info(kind)[0]) if kind.type == "cuda" else None


def _count_while_loading(
    skeleton: PreTrainedModel, choice: QuantizationChoice, dtype: torch.dtype
) -> int:
    from moetool.quantizing.layout import list_packable
    from moetool.quantizing.packing import Packing

    if not choice.quantizes_experts:
        return 0
    packable = list_packable(skeleton, Packing(choice.quantization, choice.is_double_quantized))
    largest = max(
        sum(matrix.num_experts * matrix.num_weights for matrix in matrices)
        for _, _, matrices in packable
    )
    # Experts are packed one by one, unless a file has those of a layer in one tensor.
    return largest * dtype.itemsize


def describe_quantization(model: PreTrainedModel) -> dict[str, Any]:
    """Return the fields of a trace's metadata that state what was quantized, as far as is known."""
    stated = getattr(model.config, "quantization_config", None)
    choice = getattr(stated, "choice", None)
    if not isinstance(choice, QuantizationChoice):
        return {"quantization": find_method(model.config)}
    from moetool.quantizing.sizes import measure_bytes

    sizes = measure_bytes(model)
    # Packed experts run their own code, whatever the configuration says.
    implementation = {"experts_implementation": "packed"} if choice.quantizes_experts else {}
    return {
        **implementation,
        "quantization": str(choice),
        "quantized_expert_bytes": sizes.experts,
        "quantized_linear_bytes": sizes.linears,
        "unquantized_bytes": sizes.plain,
    }
