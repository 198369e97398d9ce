"""Write a quantized checkpoint from Python, with its routed experts quantized too."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.anatomy.headers.published_format import name_packed
from moetool.checkpoint.config import load_config
from moetool.checkpoint.files import Checkpoint, find_weight_files, open_checkpoint
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.checkpoint.reference import ModelReference
from moetool.choices import take_flag, take_path
from moetool.errors import InputError, OutOfMemoryError, UsageError
from moetool.library.given_models import find_reference
from moetool.memory.machine.host_memory import find_available_bytes
from moetool.quantizing.choice import QuantizationChoice, choose_quantization
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from moetool.checkpoint.headers.tensor_headers import TensorHeaders


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A quantized checkpoint on disk.

    Attributes:
        folder: The folder with its files.
        quantization: The format in words, such as `nf4, double quantization`.
        tensor_bytes: Bytes of its tensors, without the headers of files.
        source_tensor_bytes: Bytes of the tensors that it was made of.
        num_files: Its weight files.
    """

    folder: Path
    quantization: str
    tensor_bytes: int
    source_tensor_bytes: int
    num_files: int


def quantize_checkpoint(
    model: str | PathLike[str] | ModelReference,
    folder: str | PathLike[str],
    quantization: str = "nf4",
    *,
    double_quant: bool = False,
    quantize_experts: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    announce: Callable[[str], None] = lambda _: None,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> QuantizedCheckpoint:
    """Write a checkpoint with quantized weights, as `moetool quantize` does.

    Its tensors are those of `load_quantized` with the same options. One fused parameter is in memory
    at a time. The folder appears when it is complete. `load_quantized` loads it, and after
    `import moetool` so does transformers.

    Args:
        model: A folder, a Hub id or `demo`.
        folder: The folder to write.
        quantization: `nf4`, `fp4` or `int8`.
        double_quant: Quantize the scales of 4-bit weights too.
        quantize_experts: Quantize routed experts too, or linear layers only.
        overwrite: Replace a folder that this function wrote.
        revision: Branch, tag or commit, for Hub ids.
        trust_remote_code: Run Python code from the model's repository if it needs it.
        announce: Called with one line before weights are downloaded.
        advance: Called with the number of parameters that are written, and of all.

    Raises:
        UsageError: Options contradict each other; the experts aren't a fused pair of matrices; the
            folder exists, can't be written, or its disk is too small.
        InputError: The checkpoint can't be read, or is quantized already.
        OutOfMemoryError: This machine has too little memory for one fused parameter.
    """
    choice = choose_quantization(
        quantization, double_quantization=double_quant, quantize_experts=quantize_experts
    )
    if choice is None:
        raise UsageError(
            "A checkpoint can't be quantized in no format.", hint="Give nf4, fp4 or int8."
        )
    target = Path(os.path.abspath(take_path(folder, name="folder")))
    replaces = take_flag(overwrite, name="overwrite")
    from moetool.quantizing.saving.folder import check_target_folder, folder_in_place

    check_target_folder(target, replace_existing=replaces)
    checkpoint = open_checkpoint(
        find_reference(model), revision=revision, with_code=trust_remote_code, announce=announce
    )
    find_weight_files(checkpoint.folder).check_safetensors(
        str(checkpoint.folder), hint="Convert them to safetensors with `save_pretrained`."
    )
    headers = read_local_headers(checkpoint.folder)
    assert headers is not None
    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    skeleton = _build(checkpoint, config, headers, choice, trust_remote_code=trust_remote_code)
    from moetool.quantizing.saving.save import save_quantized

    _check_room(checkpoint, config, skeleton, headers, choice, target)
    try:
        with folder_in_place(target, replace_existing=replaces) as partial:
            saved = save_quantized(
                checkpoint, config, skeleton, headers, partial, choice=choice, advance=advance
            )
    except OSError as error:
        raise UsageError(
            f"Can't write '{target}': {error.strerror or error}.",
            hint="Name a folder that you may write, on a disk with enough space.",
        ) from error
    return QuantizedCheckpoint(
        folder=target,
        quantization=str(choice),
        tensor_bytes=saved.tensors,
        source_tensor_bytes=sum(tensor.num_bytes for tensor in headers.tensors),
        num_files=saved.num_files,
    )


def _build(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    headers: TensorHeaders,
    choice: QuantizationChoice,
    *,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Return the model on the meta device, after checks that it can be quantized."""
    from moetool.anatomy.skeleton.build import build_skeleton, refuse_unbuildable
    from moetool.quantizing.checks import check_quantizable

    with refuse_unbuildable(checkpoint.name, config, trust_remote_code=trust_remote_code):
        skeleton = build_skeleton(config, trust_remote_code=trust_remote_code)
    check_quantizable(
        config, skeleton, choice, name=checkpoint.name, device_map={"": "cpu"}, computes=False
    )
    packed = name_packed(headers, {})
    if packed is not None:
        raise InputError(
            f"The weights of {checkpoint.name} are quantized already ({packed}): they can't be "
            "quantized again.",
            hint="Name a checkpoint in bfloat16.",
        )
    return skeleton


def _check_room(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    skeleton: PreTrainedModel,
    headers: TensorHeaders,
    choice: QuantizationChoice,
    target: Path,
) -> None:
    """Check that the disk has room for all files, and memory for the largest parameter."""
    import torch

    from moetool.anatomy.skeleton.build import find_dtype
    from moetool.quantizing.sizes import plan_bytes

    dtype = find_dtype(config, headers=headers) or torch.float32
    planned = plan_bytes(skeleton, choice, dtype=dtype).total
    left = shutil.disk_usage(target.parent).free
    if planned > left:
        raise UsageError(
            f"{checkpoint.name} takes {format_bytes(planned)} in {choice}, and the disk of "
            f"'{target.parent}' has {format_bytes(left)} free.",
            hint="Name a folder on a disk with more space.",
        )
    # A fused parameter, and what it is fused of. Where matrices of experts are apart in the files,
    # these are single ones, with copies, and what was packed of the others.
    largest = max(p.numel() for p in skeleton.parameters())
    stored = max((math.prod(tensor.shape) for tensor in headers.tensors), default=0)
    needed = min(2 * largest, largest + 4 * stored) * dtype.itemsize
    available = find_available_bytes()
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"{checkpoint.name} takes up to {format_bytes(needed)} of memory while it is quantized, "
            f"and {format_bytes(available)} are available.",
            hint="Use a machine with more memory.",
        )
