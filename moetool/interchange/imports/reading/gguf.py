"""A small reader of GGUF files: their metadata, and tensors of float32.

Every length is checked against the file before anything is allocated for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moetool.interchange.imports.reading.text import damaged, open_input, quote

GGUF_START = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_FLOAT32 = 0
_STRING, _ARRAY = 8, 9
# By GGUF's number of the type.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: The last dimension varies fastest: GGUF's `ne`, reversed.
        kind: GGUF's number of its type.
        offset: From the start of the file, in bytes.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file.

    Attributes:
        metadata: Values by key.
        tensors: By name, in the order of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of float32.

        Raises:
            InputError: It has another type, or lies outside of the file.
        """
        tensor = self.tensors[name]
        if tensor.kind != _FLOAT32:
            raise damaged(quote(self.path), f"holds {name!r} in another type than float32")
        with open_input(self.path) as file:
            _check_room(file, self.path, tensor.offset, 4 * math.prod(tensor.shape))
            file.seek(tensor.offset)
            data = file.read(4 * math.prod(tensor.shape))
        return np.frombuffer(data, dtype="<f4").reshape(tensor.shape)


def read_gguf(path: Path) -> GgufFile:
    """Return the header of a GGUF file.

    Raises:
        InputError: The file is not GGUF, is of another version, or breaks off.
    """
    with open_input(path) as file:
        reader = _Reader(file, path)
        if reader.take(4) != GGUF_START:
            raise damaged(quote(path), "is not a GGUF file")
        version = reader.number("<I")
        if version not in _VERSIONS:
            raise damaged(
                quote(path),
                f"is of GGUF version {version}, which isn't known",
                hint="Convert it with a llama.cpp that writes version 3, little-endian.",
            )
        num_tensors, num_values = reader.count(least_bytes=24), reader.count(least_bytes=13)
        metadata = {reader.text(): reader.value() for _ in range(num_values)}
        found = [reader.tensor() for _ in range(num_tensors)]
        end = file.tell()
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise damaged(quote(path), "states an impossible alignment")
    start = -(-end // alignment) * alignment
    return GgufFile(
        path,
        metadata,
        {name: GgufTensor(shape, kind, start + offset) for name, shape, kind, offset in found},
    )


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = path.stat().st_size

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self._size - self._file.tell():
            raise damaged(quote(self._path), "breaks off in its header")
        return self._file.read(num_bytes)

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, *, least_bytes: int) -> int:
        """Return a number of items, each of which takes some bytes of the rest of the file."""
        count: int = self.number("<Q")
        if count * least_bytes > self._size - self._file.tell():
            raise damaged(quote(self._path), "breaks off in its header")
        return count

    def text(self) -> str:
        return self.take(self.number("<Q")).decode(errors="replace")

    def value(self) -> Any:
        kind = self.number("<I")
        if kind != _ARRAY:
            return self._item(kind)
        inner = self.number("<I")
        if inner == _STRING:
            return [self.text() for _ in range(self.count(least_bytes=8))]
        if inner not in _SCALARS:
            raise damaged(quote(self._path), f"holds an array of the unknown type {inner}")
        size = struct.calcsize(_SCALARS[inner])
        num_bytes = self.count(least_bytes=size) * size
        return [item for (item,) in struct.iter_unpack(_SCALARS[inner], self.take(num_bytes))]

    def _item(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _SCALARS:
            raise damaged(quote(self._path), f"holds a value of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        num_dimensions = self.number("<I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise damaged(quote(self._path), f"holds a tensor of {num_dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(num_dimensions))[::-1]
        return name, shape, self.number("<I"), self.number("<Q")


def _check_room(file: BinaryIO, path: Path, offset: int, num_bytes: int) -> None:
    size = file.seek(0, 2)
    if offset + num_bytes > size:
        raise damaged(quote(path), "breaks off: a tensor lies past its end")
