"""A checkpoint, quantized and written parameter by parameter."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.build import find_dtype
from moetool.checkpoint.config import first_line
from moetool.checkpoint.files import Checkpoint, read_json
from moetool.checkpoint.headers.tensor_headers import TensorHeaders
from moetool.errors import InputError, MoetoolError
from moetool.process.quiet import following_weights, quiet_transformers
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.layout import list_converted_linears, list_packable
from moetool.quantizing.packing import Packing
from moetool.quantizing.quantizer import make_config
from moetool.quantizing.saving.quantizer import Handover, SavingStopped, make_saving_config
from moetool.quantizing.saving.shards import MOST_ENTRY_BYTES, SHARD_BYTES, ShardWriter
from moetool.quantizing.saving.stored_weights import list_stored
from moetool.wording import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Files of weights in any format, and indexes of them.
_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".onnx"),
    ".index.json",
)
_TEMPLATES = "additional_chat_templates"
# Tensors that a linear layer in 4 bits has next to its weight, and a matrix of experts next to its
# codes; and the longest words that they add to its name.
_MOST_SCALES = 5
_MOST_WORD_BYTES = 32


@dataclass(frozen=True)
class SavedBytes:
    """Bytes of the files that were written.

    Attributes:
        tensors: Of all tensors.
        num_files: Weight files.
    """

    tensors: int
    num_files: int


@quiet_transformers()
def save_quantized(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    skeleton: PreTrainedModel,
    headers: TensorHeaders,
    folder: Path,
    *,
    choice: QuantizationChoice,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> SavedBytes:
    """Write a checkpoint's weights, quantized, and its other files.

    At most one fused parameter, with the tensors that it is made of, is in memory at a time.

    Args:
        checkpoint: Files with weights, after `check_quantizable`.
        config: The checkpoint's configuration.
        skeleton: Its model on the meta device.
        headers: Of the weight files.
        folder: An empty folder.
        choice: What to quantize, and the format.
        shard_bytes: Size of a weight file.
        advance: Called with the number of parameters that are written, and of all.

    Raises:
        InputError: The weights don't match the configuration, or can't be read.
        OSError: A file can't be written.
    """
    dtype = find_dtype(config, headers=headers) or torch.float32
    room = _count_header_bytes(skeleton, choice)
    with ShardWriter(folder, header_bytes=room, shard_bytes=shard_bytes) as writer:
        handover = Handover(writer.write)
        model, missing = _hand_over(
            checkpoint, config, type(skeleton), headers, choice, handover, dtype, advance
        )
        wrong = {**dict.fromkeys(missing, "missing"), **handover.unfit}
        if wrong:
            raise InputError(
                f"The weights of {checkpoint.name} do not match its config.json: "
                f"{number_of(len(wrong), 'tensor')} {'is' if len(wrong) == 1 else 'are'} missing or "
                "of another shape.",
                hint="Use the config.json and the weight files of the same checkpoint.",
                facts=[f"unfit: {path} ({words})" for path, words in sorted(wrong.items())[:3]],
            )
        for name, tensor in _list_rest(model, writer.names).items():
            writer.write(name, tensor)
        writer.finish()
    _copy_others(checkpoint.folder, folder)
    stated = read_json(checkpoint.folder / "config.json", missing="")
    _write_config(stated, folder, model=model, choice=choice, dtype=dtype)
    num_files = sum(path.suffix == ".safetensors" for path in folder.iterdir())
    return SavedBytes(writer.total_bytes, num_files)


def _hand_over(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    model_class: Any,
    headers: TensorHeaders,
    choice: QuantizationChoice,
    handover: Handover,
    dtype: torch.dtype,
    advance: Callable[[int, int], None],
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model whose parameters were handed over, and those that no file holds."""
    stored = list_stored(checkpoint.folder, headers)
    try:
        with following_weights(advance):
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=stored,
                dtype=dtype,
                device_map={"": "cpu"},
                quantization_config=make_saving_config(choice, handover),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except SavingStopped as stopped:
        if isinstance(stopped.error, OSError | MemoryError | MoetoolError):
            raise stopped.error from None
        raise _unreadable(checkpoint, stopped.error) from stopped.error
    except (MoetoolError, OSError):
        raise
    except Exception as error:
        raise _unreadable(checkpoint, error) from error
    missing = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    return model, missing


def _unreadable(checkpoint: Checkpoint, error: Exception) -> InputError:
    return InputError(
        f"The weights of {checkpoint.name} can't be quantized.",
        hint="Check that config.json and the weight files belong together.",
        facts=[f"seen: {first_line(error)}"],
    )


def _list_rest(model: PreTrainedModel, written: set[str]) -> dict[str, torch.Tensor]:
    """Return the tensors that the model has kept, without those tied to others."""
    tied = model.all_tied_weights_keys
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not tensor.is_meta and name not in written and name not in tied
    }


def _count_header_bytes(skeleton: PreTrainedModel, choice: QuantizationChoice) -> int:
    """Return room for the header of a file with all tensors."""
    names = list(skeleton.state_dict())
    quantized = [f"{path}.weight" for path, _ in list_converted_linears(skeleton)]
    if choice.quantizes_experts:
        packing = Packing(choice.quantization, choice.is_double_quantized)
        for path, _, matrices in list_packable(skeleton, packing):
            quantized += [f"{path}.{matrix.name}" for matrix in matrices]
    plain = sum(len(name) + MOST_ENTRY_BYTES for name in names)
    scales = (len(name) + _MOST_WORD_BYTES + MOST_ENTRY_BYTES for name in quantized)
    return plain + _MOST_SCALES * sum(scales)


def _copy_others(source: Path, folder: Path) -> None:
    """Copy what belongs to a checkpoint apart from its weights, such as its tokenizer."""
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        is_other = not entry.name.startswith(".") and not entry.name.endswith(_WEIGHT_SUFFIXES)
        if is_other and entry.is_file() and entry.name != "config.json":
            shutil.copyfile(entry.path, folder / entry.name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES)


def _write_config(
    stated: Mapping[str, Any],
    folder: Path,
    *,
    model: PreTrainedModel,
    choice: QuantizationChoice,
    dtype: torch.dtype,
) -> None:
    """Write the checkpoint's configuration with the quantization that was chosen."""
    written = {
        **stated,
        "architectures": [type(model).__name__],
        "quantization_config": make_config(choice).to_dict(),
    }
    if "dtype" not in stated and "torch_dtype" not in stated:
        written["dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(written, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
