"""From a checkpoint to a running model whose weights are all its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moetool.anatomy.skeleton import find_auto_class
from moetool.checkpoint.config import first_line
from moetool.checkpoint.files import Checkpoint
from moetool.errors import InputError, OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")


def choose_device(name: str | None) -> torch.device:
    """Return the named device; by default the first accelerator, else the CPU.

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
            hint="Leave --device out to use a GPU if there is one, or give cpu, cuda, cuda:1, ….",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    return device


def load_model(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    *,
    device: torch.device,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the checkpoint's model in evaluation mode on a device.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        device: Where the weights go.
        dtype: Of the weights, one of `DTYPES`; by default the checkpoint's own.
        trust_remote_code: Run the repository's own code.

    Raises:
        InputError: The weights are not those of the configuration, or can't be loaded.
        OutOfMemoryError: They don't fit.
    """
    import transformers

    auto_class: Any = getattr(transformers, find_auto_class(config))
    try:
        model, report = auto_class.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=dtype or "auto",
            device_map={"": device},
            trust_remote_code=trust_remote_code,
            # Checked below, in words that can be understood.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Memory ran out while loading {checkpoint.name} on {device}.",
                hint="Use a smaller --dtype, or a device with more memory.",
            ) from error
        raise InputError(
            f"The weights of {checkpoint.name} can't be loaded.",
            hint="Check that config.json and the weight files belong together.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    # transformers fills what a checkpoint lacks with random numbers: their routing would be noise.
    wrong = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if wrong:
        raise InputError(
            f"The weights of {checkpoint.name} do not match its config.json: {len(wrong)} tensors are "
            "missing or of another shape.",
            hint="Use the config.json and the weight files of one and the same checkpoint.",
            facts=[f"unfit: {key}" for key in sorted(wrong)[:3]],
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that an allocation failed, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's CPU allocator raises a bare RuntimeError.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "Cannot allocate memory")
    )
