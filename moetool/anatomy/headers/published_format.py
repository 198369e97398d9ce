"""The format in which weights are published, as config.json states it or as the files show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moetool.anatomy.headers.packed_weights import INTEGERS
from moetool.anatomy.headers.stored_tensors import Role, read_stored
from moetool.checkpoint.stated.quantization import name_quantization

if TYPE_CHECKING:
    from moetool.checkpoint.headers.tensor_headers import TensorHeaders
    from moetool.checkpoint.subject import Subject


def find_quantization(subject: Subject) -> str | None:
    """Return the format in which a model's weights are published; None if they are not quantized.

    It is the one that config.json states. If config.json states none and the files are quantized,
    the headers show it, or the catalogue knows it.
    """
    named = name_quantization(subject.config)
    if named is not None:
        return named
    known = subject.published.stored_as if subject.published is not None else None
    if subject.headers is None:
        return known
    packed = name_packed(subject.headers, subject.config)
    return None if packed is None else known or packed


def name_packed(headers: TensorHeaders, config: Mapping[str, object]) -> str | None:
    """Return the format of packed weights that config.json doesn't call quantized; None if plain."""
    if not any(_is_packed_dtype(tensor.dtype) for tensor in headers.tensors):
        return None
    dtypes = {
        stored.header.dtype
        for stored in read_stored(headers.tensors, config)
        if stored.role is Role.PARAMETER
        and len(stored.header.shape) > 1
        and _is_packed_dtype(stored.header.dtype)
    }
    words = " and ".join(sorted(dtypes))
    return f"unstated format, stored as {words}" if dtypes else None


def _is_packed_dtype(dtype: str) -> bool:
    return dtype in INTEGERS or dtype.startswith(("F8", "F6", "F4"))
