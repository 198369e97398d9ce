"""Weights of safetensors files that are read one by one, when they are needed.

Files are read and not mapped into memory: pages of a mapped file count as the process's memory until
the system needs them for something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from moetool.checkpoint.headers.safetensors_header import LENGTH_BYTES
from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.errors import InputError
from moetool.quantizing.saving.allocator import allocate

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class StoredWeight:
    """A tensor in a file. `[...]` reads it, as transformers reads the slices of safetensors.

    Attributes:
        header: The tensor as the file's header describes it.
    """

    def __init__(self, path: Path, header: TensorHeader, *, start: int) -> None:
        self.header = header
        self._path = path
        self._start = start

    def __getitem__(self, index: object) -> torch.Tensor:
        """Return the part of the tensor at an index."""
        whole = self._read()
        part: torch.Tensor = whole if index is Ellipsis else whole[index]  # type: ignore[index]
        return part

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.header.shape)

    def get_dtype(self) -> str:
        """Return the dtype by safetensors' name."""
        return self.header.dtype

    def _read(self) -> torch.Tensor:
        content = allocate(self.header.num_bytes)
        view = content.numpy().data
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._start)
            num_read = 0
            # The system returns at most two gigabytes at a time.
            while num_read < len(view):
                count = file.readinto(view[num_read:])
                if not count:
                    raise InputError(
                        f"'{self._path}' became shorter while it was being read.",
                        hint="Leave the checkpoint as it is during the run, and run again.",
                    )
                num_read += count
        return content.view(_DTYPES[self.header.dtype]).view(self.header.shape)


def list_stored(folder: Path, headers: TensorHeaders) -> dict[str, StoredWeight]:
    """Return the tensors of a folder's weight files by name, none of which is read yet.

    Args:
        folder: The folder with the files.
        headers: The files' headers, with the tensors of each file in the order of their data.

    Raises:
        InputError: A tensor has a dtype that isn't plain.
    """
    stored: dict[str, StoredWeight] = {}
    for path, start, header in _iter_places(folder, headers):
        if header.dtype not in _DTYPES:
            raise InputError(
                f"Tensor {header.name} of '{path}' is in {header.dtype}: it can't be quantized again.",
                hint="Name a checkpoint in bfloat16.",
            )
        stored[header.name] = StoredWeight(path, header, start=start)
    return stored


def _iter_places(folder: Path, headers: TensorHeaders) -> Iterator[tuple[Path, int, TensorHeader]]:
    sums: dict[str, int] = {}
    for header in headers.tensors:
        sums[header.file] = sums.get(header.file, 0) + header.num_bytes
    # The header's length isn't kept, and data reaches to the end of the file.
    ends = {file: headers.file_bytes[file] - size for file, size in sums.items()}
    assert all(end >= LENGTH_BYTES for end in ends.values())
    for header in headers.tensors:
        yield folder / header.file, ends[header.file], header
        ends[header.file] += header.num_bytes
