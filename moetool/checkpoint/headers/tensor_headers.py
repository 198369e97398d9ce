"""The tensors of a checkpoint as the headers of its files describe them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from moetool.checkpoint.headers.weight_files import list_some
from moetool.errors import InputError

_RANK = re.compile(r"rank\d+\.safetensors")


@dataclass(frozen=True)
class TensorHeader:
    """One tensor in a file.

    Attributes:
        name: As in the file.
        dtype: By safetensors' name: `BF16`, `F8_E4M3`, `U8`, …
        shape: As in the file; packed weights have fewer elements than weights.
        num_bytes: In the file.
        file: The file's name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    file: str

    @property
    def num_elements(self) -> int:
        """Elements, packed or not."""
        return prod(self.shape)


@dataclass(frozen=True)
class TensorHeaders:
    """The tensors in all weight files of a checkpoint.

    Attributes:
        tensors: In the order of the files, and of the data in each file.
        file_bytes: Bytes of the weight files, headers included, by name.
    """

    tensors: tuple[TensorHeader, ...]
    file_bytes: dict[str, int]


def join_headers(
    parts: Sequence[TensorHeaders], *, weight_map: Mapping[str, str] | None, label: str
) -> TensorHeaders:
    """Return the tensors of all files of a checkpoint, checked against each other and its index.

    Tensors that the index leaves out are kept: they are in the files.

    Args:
        parts: The tensors of each file.
        weight_map: The file of every tensor, according to the index; None without an index.
        label: The checkpoint, for error messages.

    Raises:
        InputError: Two files hold a tensor of the same name, or the index names tensors that its
            files do not hold.
    """
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    files = {tensor.name: tensor.file for tensor in tensors}
    if len(files) < len(tensors):
        counts = Counter(tensor.name for tensor in tensors)
        twice = [name for name, count in counts.items() if count > 1]
        if all(_RANK.fullmatch(part) for part in set(files.values())):
            raise InputError(
                f"'{label}' holds separate parts for {len(parts)} GPUs, as TensorRT-LLM writes them, "
                "and doesn't say what they add up to.",
                hint="Name the checkpoint that it was converted from.",
            )
        raise InputError(
            f"Two weight files of '{label}' hold tensors of the same name.",
            hint="Remove the weight files that belong to another checkpoint.",
            facts=[f"seen: {list_some(twice)}"],
        )
    if weight_map is not None and not weight_map.items() <= files.items():
        absent = [name for name, file in weight_map.items() if files.get(name) != file]
        raise InputError(
            f"The index of '{label}' names {len(absent)} tensors that its weight files do not hold.",
            hint="Download the index and the weight files again: they are from different checkpoints.",
            facts=[f"missing: {list_some(absent)}"],
        )
    file_bytes = {name: size for part in parts for name, size in part.file_bytes.items()}
    return TensorHeaders(tensors=tensors, file_bytes=file_bytes)
