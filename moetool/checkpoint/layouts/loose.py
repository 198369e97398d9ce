"""Weights without a config.json: a file of safetensors or torch, or a folder of such files."""

from __future__ import annotations

from pathlib import Path

from moetool.checkpoint.files import find_weight_files
from moetool.checkpoint.headers.local_headers import read_local_headers, read_weight_file
from moetool.checkpoint.headers.tensor_headers import TensorHeaders
from moetool.checkpoint.headers.weight_files import list_some
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import (
    PICKLED,
    SAFETENSORS,
    list_names,
    list_pickled,
)
from moetool.errors import InputError


def read_loose_folder(folder: Path) -> FoundCheckpoint:
    """Return the weights in a folder of files of safetensors, or of torch.

    Raises:
        InputError: A file is broken, or there are several and nothing shows which one is meant.
    """
    files = find_weight_files(folder)
    if files.names:
        headers = read_local_headers(folder)
        assert headers is not None
        is_plain = files.names[0].endswith(".safetensors")
        return FoundCheckpoint(SAFETENSORS if is_plain else PICKLED, headers)
    names = list_pickled(list_names(folder))
    if len(names) > 1:
        raise InputError(
            f"'{folder}' holds {len(names)} files of torch.save, and no index that joins them.",
            hint="Name one of the files.",
            facts=[f"seen: {list_some(names)}"],
        )
    return read_loose_file(folder / names[0])


def read_loose_file(path: Path) -> FoundCheckpoint:
    """Return the weights in one file.

    Raises:
        InputError: The file is broken.
    """
    headers: TensorHeaders = read_weight_file(path, file=path.name)
    notes: tuple[str, ...] = ()
    if (path.parent / "config.json").is_file() and path.parent != Path():
        notes = (
            f"Only this file was read, without the config.json next to it; name '{path.parent}' to "
            "count the whole checkpoint.",
        )
    layout = SAFETENSORS if path.suffix == ".safetensors" else PICKLED
    return FoundCheckpoint(layout, headers, notes=notes)
