"""Adapters of PEFT: what they add to their base model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moetool.catalogue.names import find_published_name
from moetool.catalogue.published import read_published_config, read_published_models
from moetool.checkpoint.files import find_weight_files, read_json
from moetool.checkpoint.headers.local_headers import read_weight_file
from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders, join_headers
from moetool.checkpoint.headers.weight_files import WeightFiles, list_some
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import ADAPTER, list_names
from moetool.errors import InputError
from moetool.wording import number_of

_CONFIG = "adapter_config.json"
_PICKLED = "adapter_model.bin"
_PREFIX = re.compile(r"^base_model\.model\.")
_PAIR = re.compile(r"\.lora_(A|B)\.")
_OF_EXPERTS = re.compile(r"(^|\.)experts\.(?!\d)")


def read_adapter(folder: Path) -> FoundCheckpoint:
    """Return the tensors that an adapter adds, and the routing that its base model states.

    Raises:
        InputError: A file is missing or broken.
    """
    stated = read_json(folder / _CONFIG, missing=f"'{folder}' lost its {_CONFIG}.")
    files = find_weight_files(folder)
    if not files.names and _PICKLED in list_names(folder):
        files = WeightFiles((_PICKLED,))
    if not files.names:
        raise InputError(
            f"'{folder}' holds {_CONFIG}, but no weights of the adapter.",
            hint="Put adapter_model.safetensors next to it.",
        )
    parts = [read_weight_file(folder / name, file=name) for name in files.names]
    headers = join_headers(parts, weight_map=files.weight_map, label=str(folder))
    added = [tensor for tensor in headers.tensors if _is_added(tensor.name, stated)]
    replaced = [tensor for tensor in headers.tensors if not _is_added(tensor.name, stated)]
    return FoundCheckpoint(
        ADAPTER,
        TensorHeaders(tuple(_as_added(tensor, stated) for tensor in added), headers.file_bytes),
        _find_base_config(stated),
        notes=tuple(_note_replaced(replaced)),
        adapter=stated,
    )


def find_base(stated: Mapping[str, object]) -> tuple[str | None, str | None]:
    """Return the base model that an adapter's configuration names, and its name in the catalogue."""
    base = stated.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return None, None
    return base, find_published_name(base)


def _find_base_config(stated: Mapping[str, object]) -> Mapping[str, object]:
    _, name = find_base(stated)
    if name is None or not read_published_models()[name].can_be_counted:
        return {}
    return read_published_config(name)


def _is_added(name: str, stated: Mapping[str, object]) -> bool:
    """Return whether a tensor is added to the base model, and does not replace a part of it."""
    if str(stated.get("peft_type", "")).upper() == "LORA":
        return ".lora_" in name
    saved = stated.get("modules_to_save")
    whole = saved if isinstance(saved, list) else []
    return not any(f".{module}." in name for module in whole)


def _note_replaced(tensors: Sequence[TensorHeader]) -> Iterator[str]:
    if tensors:
        total = sum(tensor.num_elements for tensor in tensors)
        yield (
            f"Also in the files, and not counted: {number_of(len(tensors), 'tensor')} that replace the "
            f"base model's ({total:,} parameters: {list_some([t.name for t in tensors])})."
        )


def _as_added(tensor: TensorHeader, stated: Mapping[str, object]) -> TensorHeader:
    """Return a tensor of an adapter under the name of what it is added to.

    Matrices for a stack of experts are one below the other, or one next to the other. They become a
    stack of the same size, as PEFT's own code reshapes them.
    """
    name = _PREFIX.sub("", tensor.name)
    part = _PAIR.search(name)
    if part is None:
        return replace(tensor, name=name)
    name = _PAIR.sub(rf".adapter_{part[1]}.", name)
    rank = stated.get("r")
    shape = tensor.shape
    if _OF_EXPERTS.search(name) and len(shape) == 2 and type(rank) is int and rank > 0:
        joined = shape[0] if part[1] == "A" else shape[1]
        other = shape[1] if part[1] == "A" else shape[0]
        if joined % rank == 0 and not stated.get("rank_pattern"):
            shape = (joined // rank, rank, other)
    return replace(tensor, name=name, shape=shape)
