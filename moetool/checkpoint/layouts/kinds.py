"""The formats of checkpoints without a config.json, recognised by the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from moetool.errors import InputError

# Files of torch.save next to weights: settings, and the state of a training run.
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state\w*|random_states\w*)\."
)
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Layout:
    """A format of checkpoints.

    Attributes:
        name: In words.
        signs: Patterns, each of which some file's name matches completely.
        convert: The way to a folder with a config.json, in the imperative.
        stated_by: The file that states top-k; None if there is none.
        is_read: Whether its tensors can be counted.
    """

    name: str
    signs: tuple[str, ...]
    convert: str
    stated_by: str | None = None
    is_read: bool = True


_CONFIG_NEXT_TO_IT = "Put the model's config.json next to it"

ADAPTER = Layout(
    "an adapter of PEFT",
    (r"adapter_config\.json",),
    "Merge it into its base model with PEFT's merge_and_unload, and save that",
)
MISTRAL = Layout(
    "a model in Mistral's own format",
    (r"params\.json", r"consolidated\S*\.(safetensors|pth)"),
    "Convert it with transformers' convert_mistral_weights_to_hf.py or convert_mixtral_weights_to_hf.py",
    stated_by="params.json",
)
MEGATRON = Layout(
    "a distributed checkpoint of Megatron-Core (torch_dist)",
    (r"\.metadata", r"common\.pt|metadata\.json"),
    "Convert it with Megatron Bridge's export to Hugging Face",
    stated_by="common.pt",
)
DISTRIBUTED = Layout(
    "a distributed checkpoint of torch (DCP, as FSDP writes it)",
    (r"\.metadata",),
    "Convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and put the model's "
    "config.json next to it",
)
DEEPSPEED = Layout(
    "a checkpoint of DeepSpeed-MoE",
    (r"(layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt",),
    "Load it with DeepSpeed, and save the model with save_pretrained",
)
ORBAX = Layout(
    "a checkpoint of Orbax (JAX, Flax or MaxText)",
    (r"_METADATA|manifest\.ocdbt|_CHECKPOINT_METADATA",),
    "Convert it with MaxText's to_huggingface.py, or load it with Orbax and save its arrays with "
    "safetensors",
)
SAFETENSORS = Layout("loose safetensors", (r".*\.safetensors",), _CONFIG_NEXT_TO_IT)
PICKLED = Layout("loose weights of torch.save", (), _CONFIG_NEXT_TO_IT)

_WITH_TRANSFORMERS = (
    "Load it with transformers (from_flax=True or from_tf=True) and save_pretrained"
)
# Formats that are named and not read. The first that matches is the one.
_ONLY_NAMED = tuple(
    Layout(name, signs, convert, is_read=False)
    for name, signs, convert in (
        ("Flax weights (msgpack)", (r".*\.msgpack",), _WITH_TRANSFORMERS),
        ("TensorFlow weights", (r".*\.h5|.*\.ckpt\.index|saved_model\.pb",), _WITH_TRANSFORMERS),
        ("an ONNX model", (r".*\.onnx",), "Name the checkpoint that it was exported from"),
        (
            "an engine of TensorRT",
            (r"rank\d+\.engine|.*\.(engine|plan)",),
            "Name the checkpoint that it was built from",
        ),
        (
            "a NeMo archive",
            (r".*\.nemo",),
            "Unpack it with tar, and convert it with NeMo's export to Hugging Face",
        ),
        (
            "weights for OpenVINO",
            (r"openvino_model\.xml",),
            "Name the checkpoint that it was exported from",
        ),
        (
            "shards of torch's distributed checkpoint, without the .metadata that describes them",
            (r".*\.distcp",),
            "Copy the .metadata too",
        ),
        (
            "ranks of Megatron-LM's older format",
            (r"mp_rank_\d+(_\d+)*",),
            "Convert it with Megatron-LM's tools/checkpoint/convert.py",
        ),
    )
)
_READ = (ADAPTER, MISTRAL, MEGATRON, DISTRIBUTED, DEEPSPEED, ORBAX, SAFETENSORS)


def find_layout(folder: Path) -> Layout | None:
    """Return the format of a folder without a config.json; None if nothing shows one.

    Raises:
        InputError: The folder can't be read.
    """
    return name_layout(list_names(folder))


def name_layout(names: Collection[str]) -> Layout | None:
    """Return the format that the names of a checkpoint's files show; None if they show none."""
    for layout in _READ:
        if _has_all(layout, names):
            return layout
    if list_pickled(names):
        return PICKLED
    return next((layout for layout in _ONLY_NAMED if _has_all(layout, names)), None)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, in order.

    Raises:
        InputError: The folder can't be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise InputError(
            f"'{folder}' can't be read.",
            hint="Name a folder that you may read.",
            facts=[f"seen: {error.strerror}"],
        ) from error


def list_pickled(names: Collection[str]) -> list[str]:
    """Return the names of files of torch.save that may hold weights."""
    return [
        name for name in names if name.endswith(PICKLED_SUFFIXES) and not _NOT_WEIGHTS.match(name)
    ]


def without_config(folder: Path) -> InputError:
    """Return the error for a folder that needs a config.json and has none."""
    layout = find_layout(folder)
    if layout is None:
        return InputError(
            f"'{folder}' holds no config.json.", hint="Name a folder in Hugging Face format."
        )
    count = "; `moetool inspect` counts its parameters" if layout.is_read else ""
    return InputError(
        f"'{folder}' holds no config.json: it is {layout.name}, not in Hugging Face format.",
        hint=f"{layout.convert}{count}.",
    )


def _has_all(layout: Layout, names: Collection[str]) -> bool:
    return all(any(re.fullmatch(sign, name) for name in names) for sign in layout.signs)
