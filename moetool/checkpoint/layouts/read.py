"""Folders without a config.json, read by the format that the names of their files show."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from moetool.checkpoint.layouts.adapter import read_adapter
from moetool.checkpoint.layouts.deepspeed import read_deepspeed
from moetool.checkpoint.layouts.distributed import read_distributed, read_megatron
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import (
    ADAPTER,
    DEEPSPEED,
    DISTRIBUTED,
    MEGATRON,
    MISTRAL,
    ORBAX,
    PICKLED,
    SAFETENSORS,
    Layout,
    find_layout,
    without_config,
)
from moetool.checkpoint.layouts.loose import read_loose_folder
from moetool.checkpoint.layouts.mistral import read_mistral
from moetool.checkpoint.layouts.orbax import read_orbax
from moetool.errors import InputError

_READERS: Mapping[Layout, Callable[[Path], FoundCheckpoint]] = {
    ADAPTER: read_adapter,
    MISTRAL: read_mistral,
    MEGATRON: read_megatron,
    DISTRIBUTED: read_distributed,
    DEEPSPEED: read_deepspeed,
    ORBAX: read_orbax,
    SAFETENSORS: read_loose_folder,
    PICKLED: read_loose_folder,
}

# Files in which DeepSpeed and Megatron name the last of their checkpoints. A name is a few letters.
_LATEST_FILES = {"latest": "{}", "latest_checkpointed_iteration.txt": "iter_{:0>7}"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,100}")
# Folders in which MaxText and Flax keep the model, in a numbered one for each step.
_ITEMS = ("items", "default", "params", "state", "model_params")
_MOST_STEPS = 100_000


def read_without_config(folder: Path) -> FoundCheckpoint:
    """Return the checkpoint in a folder without a config.json, or in the last of its checkpoints.

    Raises:
        InputError: Nothing shows its format, moetool does not read it, or a file is broken.
    """
    layout = find_layout(folder)
    note: tuple[str, ...] = ()
    if layout is None or layout is PICKLED:
        last = _find_last(folder)
        if last is not None:
            folder, layout = last, find_layout(last)
            note = (f"Read from the last checkpoint in the folder, {last.name}.",)
    reader = None if layout is None else _READERS.get(layout)
    if reader is None:
        raise without_config(folder)
    found = reader(folder)
    return replace(found, notes=(*note, *found.notes))


def _find_last(folder: Path) -> Path | None:
    """Return the folder of the last checkpoint of a training run; None if there is none."""
    for file, pattern in _LATEST_FILES.items():
        named = _read_name(folder / file)
        if named is not None and (folder / pattern.format(named)).is_dir():
            return folder / pattern.format(named)
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise InputError(
            f"'{folder}' can't be read.",
            hint="Name a folder that you may read.",
            facts=[f"seen: {error.strerror}"],
        ) from error
    steps = [name for name in names if name.isdecimal() and len(name) < 12][:_MOST_STEPS]
    if steps:
        folder = folder / max(steps, key=int)
    inner = next((name for name in _ITEMS if find_inner(folder / name)), None)
    if inner is not None:
        return folder / inner
    return folder if steps and find_inner(folder) else None


def find_inner(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint of Orbax."""
    return folder.is_dir() and find_layout(folder) is ORBAX


def _read_name(path: Path) -> str | None:
    """Return the name of a folder that a small file holds; None if it holds none."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(200).strip()
    except (OSError, ValueError):
        return None
    return text if _NAME.fullmatch(text) else None
