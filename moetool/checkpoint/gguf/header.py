"""A reader of GGUF headers that checks every claim in them, without their data.

It refuses what llama.cpp refuses (`gguf_init_from_reader`, ggml/src/gguf.cpp), and tensors that lie
outside of the file. Versions 2 and 3 are read, little-endian.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetool.checkpoint.gguf.cursor import Cursor, GgufError
from moetool.checkpoint.gguf.types import REMOVED_TYPES, TENSOR_TYPES, TensorType
from moetool.errors import InputError
from moetool.git_lfs import POINTER_START, refuse_pointer
from moetool.printable import printable

GGUF_START = b"GGUF"
_LARGEST_VERSION = 3
_MOST_DIMENSIONS = 4
_MOST_NAME_BYTES = 63
_MOST_ELEMENTS = 2**63 - 1
_DEFAULT_ALIGNMENT = 32
# The least that a tensor and a value of the metadata take in a header, and the most of each. The
# largest real files have a few thousand tensors.
_TENSOR_BYTES, _VALUE_BYTES = 24, 13
_MOST_TENSORS, _MOST_VALUES = 200_000, 20_000
_DOWNLOAD = "Download it again: it is truncated or damaged."
_CONVERT = "Convert the model again with a recent convert_hf_to_gguf.py."


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file.

    Attributes:
        name: As in the file.
        shape: The last dimension varies fastest: GGUF's `ne`, reversed.
        type: What its numbers are stored in.
        offset: From the start of the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def num_elements(self) -> int:
        """The product of its dimensions."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def num_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return self.type.count_bytes(self.num_elements)


@dataclass(frozen=True)
class GgufHeader:
    """The header of one file.

    Attributes:
        path: The file, for error messages.
        version: Of the format.
        metadata: Values by key; a `LongList` in place of a long list.
        tensors: In the order of the file.
        file_bytes: Length of the whole file.
        header_bytes: Of them, those before the data.
    """

    path: str
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    file_bytes: int
    header_bytes: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of a file. Nothing after it is read.

    Raises:
        InputError: The file can't be opened, or is not a complete GGUF file.
    """
    try:
        with path.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise broken_file(str(path), seen="not a regular file", hint="Name a GGUF file.")
            refuse_pointer(opened.read(len(POINTER_START)), path=path)

            def read(start: int, stop: int) -> bytes:
                opened.seek(start)
                return opened.read(stop - start)

            return parse_gguf_header(read, file_bytes=status.st_size, path=str(path))
    except (OSError, ValueError) as error:
        seen = getattr(error, "strerror", None) or str(error)
        raise broken_file(str(path), seen=seen, hint="Name a file that you may read.") from error


def parse_gguf_header(
    read: Callable[[int, int], bytes], *, file_bytes: int, path: str
) -> GgufHeader:
    """Return the header of a file.

    Args:
        read: Returns the file's bytes from a start to an end.
        file_bytes: Length of the whole file.
        path: The file, for error messages.

    Raises:
        InputError: The header breaks a rule of the format, or does not fit the file's length.
    """
    cursor = Cursor(read, file_bytes=file_bytes)
    try:
        version = _read_version(cursor, path)
        num_tensors = cursor.count(least_bytes=_TENSOR_BYTES)
        num_values = cursor.count(least_bytes=_VALUE_BYTES)
        if num_tensors > _MOST_TENSORS or num_values > _MOST_VALUES:
            raise GgufError(f"{num_tensors} tensors and {num_values} values, which is too many")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = cursor.text()
            if not key or key in metadata:
                raise GgufError(f"the key {key!r:.100} without a name, or twice")
            metadata[key] = cursor.value()
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise GgufError("an alignment that is not a power of two")
        raw = [_read_tensor(cursor) for _ in range(num_tensors)]
        start = -(-cursor.position // alignment) * alignment
        tensors = _place(raw, start=start, alignment=alignment, file_bytes=file_bytes)
    except GgufError as error:
        raise broken_file(path, seen=str(error)) from error
    return GgufHeader(path, version, metadata, tensors, file_bytes, start)


def broken_file(path: str, *, seen: str, hint: str = _DOWNLOAD) -> InputError:
    """Return the error for a GGUF file that is incomplete or broken."""
    return InputError(
        f"'{printable(path)}' is not a complete GGUF file.",
        hint=hint,
        facts=[f"seen: {printable(seen)}"],
    )


def _read_version(cursor: Cursor, path: str) -> int:
    """Return the version of the format.

    Raises:
        InputError: It is one that llama.cpp doesn't read either.
    """
    start = cursor.take(len(GGUF_START))
    if start != GGUF_START:
        raise GgufError(f"a file that begins with {start!r}, not with {GGUF_START!r}")
    version: int = cursor.number("<I")
    shown = printable(path)
    if version and version & 0xFFFF == 0:
        raise InputError(
            f"'{shown}' is a big-endian GGUF file, which moetool does not read.",
            hint="Convert it with gguf_convert_endian.py of llama.cpp.",
        )
    if not 2 <= version <= _LARGEST_VERSION:
        raise InputError(
            f"'{shown}' is of GGUF version {version}; moetool reads 2 and {_LARGEST_VERSION}.",
            hint=_CONVERT if version < 2 else "Update moetool, or convert the model to version 3.",
        )
    return version


def _read_tensor(cursor: Cursor) -> GgufTensor:
    """Return a tensor, whose offset is still that within the data."""
    name = cursor.text()
    if not 1 <= len(name.encode()) <= _MOST_NAME_BYTES:
        raise GgufError(f"a tensor's name of {len(name.encode())} bytes")
    num_dimensions = cursor.number("<I")
    if num_dimensions > _MOST_DIMENSIONS:
        raise GgufError(f"tensor {name!r} of {num_dimensions} dimensions")
    sizes = [cursor.number("<Q") for _ in range(num_dimensions)]
    number, offset = cursor.number("<I"), cursor.number("<Q")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        what = "removed" if number in REMOVED_TYPES else "unknown"
        raise GgufError(f"tensor {name!r} of the {what} type {number}")
    tensor = GgufTensor(name, tuple(reversed(sizes)), kind, offset)
    # Checked at every step, as in llama.cpp: a later zero does not excuse too large a product.
    product = 1
    for size in sizes:
        product *= size
        if product > _MOST_ELEMENTS or size > _MOST_ELEMENTS:
            raise GgufError(f"tensor {name!r} with more elements than 63 bits can count")
    if (sizes or [1])[0] % kind.block:
        raise GgufError(f"tensor {name!r} with rows that don't fill blocks of {kind.name}")
    return tensor


def _place(
    tensors: list[GgufTensor], *, start: int, alignment: int, file_bytes: int
) -> tuple[GgufTensor, ...]:
    """Return the tensors where they lie in the file: one after the other, each aligned."""
    placed, seen, reached = [], set[str](), 0
    for tensor in tensors:
        if tensor.name in seen:
            raise GgufError(f"tensor {tensor.name!r} twice")
        seen.add(tensor.name)
        if tensor.offset != reached:
            what = "overlaps the one before it" if tensor.offset < reached else "leaves a gap"
            raise GgufError(f"tensor {tensor.name!r} {what}")
        end = start + reached + tensor.num_bytes
        if end > file_bytes:
            raise GgufError(
                f"{file_bytes} bytes, where tensor {tensor.name!r} ends at {end}",
            )
        placed.append(GgufTensor(tensor.name, tensor.shape, tensor.type, start + tensor.offset))
        reached += -(-tensor.num_bytes // alignment) * alignment
    return tuple(placed)
