"""A reader of safetensors headers that checks every claim in them.

The format: eight bytes hold the length of the header, a JSON object follows, then the data
(<https://huggingface.co/docs/safetensors/index#format>). This reader refuses what the safetensors
library refuses, without importing it or mapping the file. It also refuses three things for which the
library picks one of several meanings: a name that occurs twice, unknown fields, and lists in place
of objects.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeGuard

from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.checkpoint.size_limits import SizeLimit
from moetool.checkpoint.strict_json import JsonError, parse_json
from moetool.errors import InputError
from moetool.git_lfs import POINTER_START, refuse_pointer

# Every file begins with its header's length, in this many bytes.
LENGTH_BYTES = 8

# The library's own limit. The largest real headers take a few megabytes.
_MAX_HEADER_BYTES = 100_000_000
# Nine values for each of half a million tensors.
_LIMIT = SizeLimit(_MAX_HEADER_BYTES, 5_000_000)

# In the library, sizes are unsigned integers of 64 bits.
_MAX_SIZE = 2**64 - 1

_BITS_PER_ELEMENT = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_FIELDS = {"dtype", "shape", "data_offsets"}
_INTEGER = {int}


def read_header(path: Path, *, file: str) -> TensorHeaders:
    """Return the tensors of a safetensors file. Only its header is read.

    Args:
        path: The path of the file.
        file: Its name in the checkpoint.

    Raises:
        InputError: The file can't be opened, or is not a complete safetensors file.
    """
    try:
        with path.open("rb") as opened:
            file_bytes = os.fstat(opened.fileno()).st_size
            refuse_pointer(opened.read(len(POINTER_START)), path=path)
            opened.seek(0)
            num_header_bytes = read_length(
                opened.read(LENGTH_BYTES), path=str(path), file_bytes=file_bytes
            )
            content = opened.read(num_header_bytes)
    except OSError as error:
        raise broken_file(str(path), seen=error.strerror or str(error)) from error
    tensors = parse_header(content, file=file, file_bytes=file_bytes, path=str(path))
    return TensorHeaders(tensors=tensors, file_bytes={file: file_bytes})


def read_length(content: bytes, *, path: str, file_bytes: int) -> int:
    """Return the length of a file's header in bytes, from the first eight bytes of the file.

    Args:
        content: Those bytes, or fewer if the file is shorter.
        path: The file, for error messages.
        file_bytes: Length of the whole file.

    Raises:
        InputError: The file ends before its header does, or the header is longer than allowed.
    """
    if len(content) < LENGTH_BYTES:
        raise broken_file(path, seen=f"{file_bytes} bytes, too few for a header")
    num_header_bytes = int.from_bytes(content[:LENGTH_BYTES], "little")
    if num_header_bytes > _MAX_HEADER_BYTES:
        raise broken_file(
            path,
            seen=f"a header of {num_header_bytes} bytes, where {_MAX_HEADER_BYTES} are allowed",
        )
    if LENGTH_BYTES + num_header_bytes > file_bytes:
        raise broken_file(
            path, seen=f"a header of {num_header_bytes} bytes in a file of {file_bytes}"
        )
    return num_header_bytes


def parse_header(
    content: bytes, *, file: str, file_bytes: int, path: str | None = None
) -> tuple[TensorHeader, ...]:
    """Return the tensors that a header describes, in the order of their data.

    Args:
        content: The header's JSON, without the eight bytes before it.
        file: The file's name in the checkpoint.
        file_bytes: Length of the whole file.
        path: The file, for error messages; by default its name.

    Raises:
        InputError: The header breaks a rule of the format, or does not fit the file's length.
    """
    try:
        tensors, data_bytes = _read_tensors(_read_entries(content), file=file)
        found = file_bytes - LENGTH_BYTES - len(content)
        if data_bytes != found:
            raise _HeaderError(f"{found} bytes of data, where the header describes {data_bytes}")
    except _HeaderError as error:
        raise broken_file(path or file, seen=str(error)) from error
    return tensors


def broken_file(path: str, *, seen: str) -> InputError:
    """Return the error for a safetensors file that is incomplete or broken."""
    return InputError(
        f"'{path}' is not a complete safetensors file.",
        hint="Download it again: it is truncated or damaged.",
        facts=[f"seen: {seen}"],
    )


class _HeaderError(Exception):
    """A header breaks a rule of the format."""


def _read_entries(content: bytes) -> dict[str, object]:
    """Return the entries of a header by tensor, without its `__metadata__`."""
    try:
        _LIMIT.check_values(content)
        # If no number can have a sign, Python's own parser is enough, and faster.
        entries = parse_json(content, parse_int=_read_count if b"-" in content else None)
    except JsonError as error:
        raise _HeaderError(f"a header that can't be read: {error}") from error
    if not isinstance(entries, dict):
        raise _HeaderError("a header that is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not _is_texts(metadata):
        raise _HeaderError("a __metadata__ with values that are not strings")
    return entries


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _read_count(text: str) -> int:
    if text.startswith("-"):
        raise _HeaderError(f"a number with a sign: {text[:24]}")
    return int(text)


def _read_tensors(entries: dict[str, object], *, file: str) -> tuple[tuple[TensorHeader, ...], int]:
    """Return the tensors of a header in the order of their data, and the sum of their bytes."""
    tensors = []
    reached = 0
    for start, end, name, dtype, shape in sorted(
        [_read_entry(name, entry) for name, entry in entries.items()]
    ):
        if start != reached:
            what = "overlaps the one before it" if start < reached else "leaves a gap before it"
            raise _HeaderError(f"{_quote(name)} {what}")
        tensors.append(TensorHeader(name, dtype, shape, end - start, file))
        reached = end
    return tuple(tensors), reached


def _read_entry(name: str, entry: object) -> tuple[int, int, str, str, tuple[int, ...]]:
    """Return the start and the end of a tensor's data, its name, its dtype and its shape."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _HeaderError(f"{_quote(name)} without exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits_per_element = _BITS_PER_ELEMENT.get(dtype) if isinstance(dtype, str) else None
    if bits_per_element is None:
        raise _HeaderError(f"{_quote(name)} of the unknown dtype {dtype!r:.40}")
    if not _is_counts(shape):
        raise _HeaderError(f"{_quote(name)} with a shape that is not a list of sizes")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise _HeaderError(f"{_quote(name)} with data_offsets that are not two numbers")
    num_elements = 1
    for size in shape:
        num_elements *= size
        # Checked at every step, as in the library: a later zero does not excuse too large a product.
        if size > _MAX_SIZE or num_elements > _MAX_SIZE:
            raise _HeaderError(f"{_quote(name)} with more elements than 64 bits can count")
    start, end = offsets
    if (end - start) * 8 != num_elements * bits_per_element:
        raise _HeaderError(f"{_quote(name)} with data_offsets that do not fit its dtype and shape")
    return start, end, name, dtype, tuple(shape)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    # Not by isinstance, because booleans are integers in Python.
    return type(value) is list and _INTEGER.issuperset(map(type, value))


def _quote(name: str) -> str:
    return f"tensor {name!r:.100}"
