"""Safetensors files written tensor by tensor, each of which leaves memory at once.

The format: eight bytes hold the length of the header, a JSON object that may end in spaces follows,
then the data (<https://huggingface.co/docs/safetensors/index#format>). Room for the header is left
free until the tensors of the file are known.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch

from moetool.checkpoint.headers.safetensors_header import LENGTH_BYTES

# As transformers' files by default, apart from a tensor that is larger.
SHARD_BYTES = 5 * 10**9
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_METADATA = {"__metadata__": {"format": "pt"}}
# An entry's punctuation, dtype, dimensions and offsets take less, and so does the metadata.
MOST_ENTRY_BYTES = 150
# A page of memory.
_ALIGNMENT = 4096


class ShardWriter:
    """Writes tensors into files of bounded size. Use it as a context manager.

    Args:
        folder: The folder for the files.
        header_bytes: Room for each file's header. A full header begins another file.
        shard_bytes: Size of a file, unless a single tensor is larger.
    """

    def __init__(self, folder: Path, *, header_bytes: int, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        room = max(header_bytes, 2 * MOST_ENTRY_BYTES) + LENGTH_BYTES
        self._data_start = -(-room // _ALIGNMENT) * _ALIGNMENT
        self._shard_bytes = shard_bytes
        self._shards: list[list[str]] = []
        self._entries: dict[str, Any] = {}
        self._entry_bytes = 0
        self._file: BinaryIO | None = None
        self._num_data_bytes = 0
        self.names: set[str] = set()
        self.total_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor, which must not have been written before.

        Raises:
            OSError: The file can't be written.
        """
        if name in self.names:
            raise ValueError(f"{name} twice")
        num_bytes = tensor.nbytes
        entry_bytes = len(json.dumps(name)) + MOST_ENTRY_BYTES
        is_full = (
            self._num_data_bytes + num_bytes > self._shard_bytes
            or self._entry_bytes + entry_bytes + MOST_ENTRY_BYTES > self._data_start
        )
        if self._file is not None and self._entries and is_full:
            self._end_shard()
        if self._file is None:
            self._file = self._path(len(self._shards)).open("xb")
            self._file.seek(self._data_start)
        start = self._num_data_bytes
        self._entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + num_bytes],
        }
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        self._file.write(flat.numpy().data)
        self._num_data_bytes += num_bytes
        self._entry_bytes += entry_bytes
        self.names.add(name)
        self.total_bytes += num_bytes

    def finish(self) -> None:
        """Complete the last file and give all files their names, with an index if there are several.

        Raises:
            OSError: A file can't be written.
        """
        if self._file is not None:
            self._end_shard()
        count = len(self._shards)
        if count == 1:
            self._path(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._path(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number + 1:05}.unfinished"

    def _end_shard(self) -> None:
        assert self._file is not None
        header = json.dumps(_METADATA | self._entries, separators=(",", ":")).encode()
        num_header_bytes = self._data_start - LENGTH_BYTES
        self._file.seek(0)
        self._file.write(num_header_bytes.to_bytes(LENGTH_BYTES, "little"))
        self._file.write(header.ljust(num_header_bytes))
        self._file.close()
        self._shards.append(list(self._entries))
        self._file = None
        self._entries, self._entry_bytes, self._num_data_bytes = {}, 0, 0
