"""Facts of a GGUF model that no other format has."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.checkpoint.gguf.cursor import LongList
from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.header import GgufTensor
from moetool.checkpoint.gguf.types import FILE_TYPES, TensorType
from moetool.plain import show_fields

_TOKEN_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class StoredType:
    """Everything in a model that is stored in one type.

    Attributes:
        type: llama.cpp's name of it.
        num_tensors: Number of tensors.
        num_elements: Numbers in them, parameters or not.
        num_bytes: Bytes, scales included.
        bits_per_weight: Bits for each number, which the type decides.
    """

    type: str
    num_tensors: int
    num_elements: int
    num_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class GgufFacts:
    """Facts of a GGUF model.

    Attributes:
        architecture: llama.cpp's name of the family.
        name: The model's name in the file; None without one.
        file_type: What llama.cpp calls the mixture of types; None if it is unknown or guessed.
        version: Of the format.
        num_layers: Layers that the file states, with those that predict further tokens.
        context_length: Tokens that the model was trained with; None if unstated.
        vocab_size: Rows of the embedding; None without one.
        num_tokens: Tokens of the tokenizer in the file; None without one.
        bits_per_weight: Bits of all tensors for each number in them.
        header_bytes: Bytes before the data, in all files.
        types: By the bytes stored in them.
    """

    architecture: str
    name: str | None
    file_type: str | None
    version: int
    num_layers: int | None
    context_length: int | None
    vocab_size: int | None
    num_tokens: int | None
    bits_per_weight: float | None
    header_bytes: int
    types: tuple[StoredType, ...]

    __repr__ = show_fields


def read_facts(model: GgufModel) -> GgufFacts:
    """Return the facts of a model."""
    metadata, tensors = model.metadata, model.tensors
    by_name = {tensor.name: tensor for tensor in tensors}
    table = by_name.get(_TOKEN_EMBEDDING)
    file_type = metadata.get("general.file_type")
    name = metadata.get("general.name")
    num_elements = sum(tensor.num_elements for tensor in tensors)
    num_bytes = sum(tensor.num_bytes for tensor in tensors)
    return GgufFacts(
        architecture=model.architecture,
        name=name if isinstance(name, str) else None,
        file_type=FILE_TYPES.get(file_type) if type(file_type) is int else None,
        version=model.parts[0].version,
        num_layers=model.read_count("block_count"),
        context_length=model.read_count("context_length"),
        vocab_size=table.shape[0] if table is not None and len(table.shape) > 1 else None,
        num_tokens=_count_items(metadata.get("tokenizer.ggml.tokens")),
        bits_per_weight=8 * num_bytes / num_elements if num_elements else None,
        header_bytes=sum(part.header_bytes for part in model.parts),
        types=_sum_types(model),
    )


def _count_items(value: object) -> int | None:
    if isinstance(value, LongList):
        return value.count
    return len(value) if isinstance(value, list) else None


def _sum_types(model: GgufModel) -> tuple[StoredType, ...]:
    by_type: dict[TensorType, list[GgufTensor]] = {}
    for tensor in model.tensors:
        by_type.setdefault(tensor.type, []).append(tensor)
    found = [
        StoredType(
            type=kind.name,
            num_tensors=len(tensors),
            num_elements=sum(tensor.num_elements for tensor in tensors),
            num_bytes=sum(tensor.num_bytes for tensor in tensors),
            bits_per_weight=8 * kind.num_bytes / kind.block,
        )
        for kind, tensors in by_type.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.num_bytes))
