"""Hand-made safetensors files, complete and broken, and their contents by the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

Entry = dict[str, Any]

# By dtype, from the documentation of the format and its library.
BITS_PER_ELEMENT = {
    **dict.fromkeys(["F4"], 4),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"], 8),
    **dict.fromkeys(["F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 16),
    **dict.fromkeys(["I32", "U32", "F32"], 32),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 64),
}


def lay_out(tensors: Mapping[str, tuple[str, list[int]]]) -> tuple[dict[str, Entry], int]:
    """Return the header of tensors that lie one after the other, and the bytes of their data."""
    header: dict[str, Entry] = {}
    reached = 0
    for name, (dtype, shape) in tensors.items():
        num_bits = BITS_PER_ELEMENT[dtype]
        for size in shape:
            num_bits *= size
        end = reached + num_bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, end]}
        reached = end
    return header, reached


def join_file(header: bytes | object, *, data_bytes: int) -> bytes:
    """Return a whole file: the header's length, the header, as many zeros as asked for."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + bytes(data_bytes)


def write_file(path: Path, tensors: Mapping[str, tuple[str, list[int]]]) -> None:
    """Write a file of tensors whose data takes no room on the disk, however large it is."""
    header, data_bytes = lay_out(tensors)
    with path.open("wb") as file:
        file.write(join_file(header, data_bytes=0))
        file.truncate(file.tell() + data_bytes)


def read_with_library(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    """Return what the safetensors library reads in a file; None if it refuses the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError:
        return None
