"""The tensors in the weight files of a checkpoint folder, without torch and without their data."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moetool.checkpoint.files import find_weight_files
from moetool.checkpoint.headers.safetensors_header import read_header
from moetool.checkpoint.headers.tensor_headers import TensorHeaders, join_headers
from moetool.checkpoint.pickled.torch_file import read_torch_file


def read_local_headers(folder: Path) -> TensorHeaders | None:
    """Return the tensors of a checkpoint folder's weight files; None if it holds no weights.

    Only the header of each file is read. The header of a pickled one is its pickle, which is never
    run.

    Raises:
        InputError: A file is missing or broken, its pickle names more than tensors, or index and
            files contradict each other.
    """
    with _collection_paused():
        files = find_weight_files(folder)
        if not files.names:
            return None
        headers = [read_weight_file(folder / name, file=name) for name in files.names]
        return join_headers(headers, weight_map=files.weight_map, label=str(folder))


def read_weight_file(path: Path, *, file: str) -> TensorHeaders:
    """Return the tensors of one weight file: of safetensors, or of torch.

    Args:
        path: The path of the file.
        file: Its name in the checkpoint.

    Raises:
        InputError: The file can't be opened, is incomplete, or its pickle names more than tensors.
    """
    if path.suffix == ".safetensors":
        return read_header(path, file=file)
    return read_torch_file(path, file=file).headers


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep Python from searching hundreds of thousands of small objects for cycles.

    JSON has no cycles, and the search took a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
