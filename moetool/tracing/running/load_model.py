"""From a checkpoint to a running model whose weights are all its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetool.anatomy.headers.published_format import name_packed
from moetool.anatomy.skeleton.build import find_auto_class
from moetool.checkpoint.config import first_line, missing_package
from moetool.checkpoint.files import Checkpoint, read_json
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.checkpoint.quantization import find_method
from moetool.checkpoint.quantization import name_quantization as name_format
from moetool.errors import InputError, MoetoolError, OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Those that accelerate makes itself, from the memory that is free.
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DTYPES = ("float32", "bfloat16", "float16")


def choose_device(name: str | None, *, option: str = "--device") -> torch.device:
    """Return the named device; by default the first accelerator, else the CPU.

    Args:
        name: As torch has it.
        option: Which option named it.

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
    """Return a device map for accelerate: one of its own by name, or a JSON file's.

    Args:
        name: One of `DEVICE_MAPS`, a device, or the path of a JSON file whose object says for
            module paths where they go: a device, a GPU's number, `cpu` or `disk`.

    Raises:
        UsageError: It is none of these.
    """
    if name in DEVICE_MAPS:
        return name
    if not name.endswith(".json"):
        return {"": choose_device(name, option="--device-map")}
    try:
        device_map = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The device map '{name}' can't be read.",
            hint='Write it as JSON, as in {"model.embed_tokens": 0, "model.layers": "cpu"}.',
            facts=[f"seen: {first_line(error)}"],
        ) from error
    if not isinstance(device_map, dict) or not all(
        isinstance(place, str | int) and not isinstance(place, bool)
        for place in device_map.values()
    ):
        raise UsageError(
            f"The device map '{name}' is not an object of module paths and devices.",
            hint='Write it as JSON, as in {"model.embed_tokens": 0, "model.layers": "cpu"}.',
        )
    for place in dict.fromkeys(device_map.values()):
        if place != "disk":
            _check_place(place)
    return device_map


def check_device_map(device_map: str | Mapping[str, Any], model: nn.Module, *, name: str) -> None:
    """Check that a device map names a place for every tensor of a model, and nothing else.

    Args:
        device_map: As `choose_device_map` returns it.
        model: The model, also on the meta device.
        name: What the user gave.

    Raises:
        UsageError: It doesn't.
    """
    if isinstance(device_map, str) or list(device_map) == [""]:
        return
    tensors = list(model.state_dict())
    # The model itself, '', stands for all of them or not at all.
    known = {*tensors, *(path for path, _ in model.named_modules())} - {""}
    faults = [
        *(f"not in the model: {path or repr(path)}" for path in device_map if path not in known),
        *(f"no place for: {tensor}" for tensor in tensors if not _covers(device_map, tensor)),
    ]
    if faults:
        raise UsageError(
            f"The device map '{name}' does not fit {type(model).__name__}.",
            hint="Name a place for each of its modules, as in the model's named_modules().",
            facts=faults[:3],
        )


def _covers(device_map: Mapping[str, Any], tensor: str) -> bool:
    return any(f"{tensor}.".startswith(f"{path}.") for path in device_map)


def _check_place(place: str | int) -> None:
    """Check that a device of a map, by name or as an accelerator's number, is there."""
    if isinstance(place, str):
        choose_device(place, option="--device-map")
        return
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or not 0 <= place < torch.accelerator.device_count():
        raise UsageError(
            f"There is no GPU {place} here.",
            hint='Give the number of one that is there, "cpu" or "disk" in the device map.',
        )


def load_model(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    *,
    device_map: str | dict[str, Any],
    offload_folder: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the checkpoint's model in evaluation mode.

    Weights in MXFP4 are loaded as bfloat16, because the kernels that compute with them as they are
    run past hooks.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        device_map: Where the weights go, as accelerate takes it.
        offload_folder: Where weights go that the device map sends to disk.
        dtype: Of the weights, one of `DTYPES`; by default the checkpoint's own.
        trust_remote_code: Run the repository's own code.

    Raises:
        InputError: The weights are not those of the configuration, or can't be loaded.
        OutOfMemoryError: They don't fit.
    """
    import transformers

    auto_class: Any = getattr(transformers, find_auto_class(config))
    stated = read_json(checkpoint.folder / "config.json", missing="")
    _refuse_format(checkpoint, stated)
    wishes: dict[str, Any] = {}
    if name_quantization(config) == "mxfp4":
        make_config: Any = getattr(transformers, "Mxfp4Config")  # noqa: B009 - lazily exported
        wishes["quantization_config"] = make_config(dequantize=True)
    try:
        model, report = auto_class.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=dtype or "auto",
            device_map=device_map,
            offload_folder=offload_folder,
            trust_remote_code=trust_remote_code,
            # Checked below, in words that can be understood.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **wishes,
        )
    except ImportError as error:
        raise missing_package(checkpoint.name, error) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Memory ran out while loading {checkpoint.name}.",
                hint="Use a smaller --dtype, --device-map auto, or a device with more memory.",
            ) from error
        raise InputError(
            f"The weights of {checkpoint.name} can't be loaded.",
            hint="Check that config.json and the weight files belong together."
            if _find_quantization(checkpoint, stated) is None
            else "Run it where its quantization is supported, or name a checkpoint in bfloat16.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    # transformers fills what a checkpoint lacks with random numbers: their routing would be noise.
    wrong = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if wrong:
        stored = _find_quantization(checkpoint, stated)
        if stored is not None:
            raise _unloadable(checkpoint, stored)
        raise InputError(
            f"The weights of {checkpoint.name} do not match its config.json: {len(wrong)} tensors are "
            "missing or of another shape.",
            hint="Use the config.json and the weight files of one and the same checkpoint.",
            facts=[f"unfit: {key}" for key in sorted(wrong)[:3]],
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _refuse_format(checkpoint: Checkpoint, stated: Mapping[str, object]) -> None:
    """Refuse quantized weights that transformers would read as if they were plain."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = find_method(stated)
    named = name_format(stated)
    if named is None or method == "bitsandbytes" or method in AUTO_QUANTIZER_MAPPING:
        return
    raise _unloadable(checkpoint, named)


def _unloadable(checkpoint: Checkpoint, stored: str) -> InputError:
    return InputError(
        f"The weights of {checkpoint.name} are quantized in a way that transformers can't load: "
        f"{stored}.",
        hint="Name a checkpoint in bfloat16, or one in a format that transformers loads.",
    )


def _find_quantization(checkpoint: Checkpoint, stated: Mapping[str, object]) -> str | None:
    """Return in what format weights are stored; None if they are plain, or nothing tells."""
    named = name_format(stated)
    if named is not None:
        return named
    try:
        headers = read_local_headers(checkpoint.folder)
    except MoetoolError:
        return None
    return None if headers is None else name_packed(headers, stated)


def find_input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model's inputs go; what is offloaded lies on no device between its uses."""
    devices = (parameter.device for parameter in model.parameters())
    real = next((device for device in devices if device.type != "meta"), None)
    return real or torch.device("cpu")


def name_devices(model: PreTrainedModel) -> str:
    """Return where a model's weights are, as in `cuda:0, cpu, disk`."""
    device_map: dict[str, Any] = getattr(model, "hf_device_map", None) or {"": model.device}
    names = (
        f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()
    )
    return ", ".join(dict.fromkeys(names))


def name_quantization(config: PreTrainedConfig) -> str | None:
    """Return the method by which a checkpoint is quantized; None if it is not."""
    return find_method(config)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that an allocation failed, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's CPU allocator raises a bare RuntimeError.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "Cannot allocate memory")
    )
