"""Tensors of float32 in GGUF files, such as llama.cpp's importance matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.checkpoint.gguf.header import GGUF_START, GgufTensor, read_gguf_header
from moetool.interchange.imports.reading.text import damaged, open_input, quote

__all__ = ["GGUF_START", "GgufFile", "read_gguf"]


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
            InputError: It has another type.
        """
        tensor = self.tensors[name]
        if tensor.type.name != "f32":
            raise damaged(quote(self.path), f"holds {name!r} in another type than float32")
        with open_input(self.path) as file:
            file.seek(tensor.offset)
            data = file.read(4 * math.prod(tensor.shape))
        return np.frombuffer(data, dtype="<f4").reshape(tensor.shape)


def read_gguf(path: Path) -> GgufFile:
    """Return the header of a GGUF file.

    Raises:
        InputError: The file is not GGUF, is of another version, or breaks off.
    """
    header = read_gguf_header(path)
    return GgufFile(path, header.metadata, {tensor.name: tensor for tensor in header.tensors})
