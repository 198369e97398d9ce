"""Arrays of integers in foreign files: `.npy`, and base64 of it or of raw numbers."""

from __future__ import annotations

import base64
import binascii
import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from moetool.interchange.imports.reading.text import damaged

NPY_START = b"\x93NUMPY"


def decode_base64(value: Any, *, name: str, source: str) -> bytes:
    """Return the bytes that a text encodes.

    Raises:
        InputError: It is not a text in base64.
    """
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise damaged(source, f"holds no base64 as {name!r}")


def parse_npy(content: bytes, *, source: str) -> NDArray[Any]:
    """Return the array in the bytes of an `.npy` file, which holds integers of any type.

    Nothing is allocated from the header alone, and nothing is unpickled.

    Raises:
        InputError: The bytes are something else, break off, or hold no integers.
    """
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    # The header is a Python literal, and parsing a strange one can fail in many ways.
    except Exception as error:
        raise damaged(source, "is not a .npy array", seen=error) from error
    if dtype.kind not in "iu" or any(size < 0 for size in shape):
        raise damaged(source, f"holds an array of {dtype}, not of integers")
    data = content[stream.tell() :]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise damaged(source, f"breaks off, or is too long for an array of shape {shape}")
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
