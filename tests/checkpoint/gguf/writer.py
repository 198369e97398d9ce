"""A writer of GGUF files for tests, whose data are holes of a sparse file."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Number of the type, numbers of a block and bytes of a block, by name; from ggml-common.h.
TYPES = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "q8_0": (8, 32, 34),
    "q4_K": (12, 256, 144),
    "q6_K": (14, 256, 210),
    "iq2_xxs": (16, 256, 66),
    "iq4_xs": (23, 256, 136),
    "i32": (26, 1, 4),
    "bf16": (30, 1, 2),
    "mxfp4": (39, 32, 17),
}
ALIGNMENT = 32

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def pack_text(text: str) -> bytes:
    """Return a text as GGUF has it: its length and its bytes."""
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def pack_value(value: Any) -> bytes:
    """Return a value with its type: texts, booleans, unsigned and floating numbers, lists of them."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        inner = [pack_value(item) for item in value] or [struct.pack("<I", 4)]
        return (
            struct.pack("<I", 9)
            + inner[0][:4]
            + struct.pack("<Q", len(value))
            + b"".join(item[4:] for item in (inner if value else []))
        )
    if isinstance(value, str):
        return struct.pack("<I", 8) + pack_text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def pack_header(metadata: Mapping[str, Any], tensors: Tensors, *, version: int = 3) -> bytes:
    """Return a header, padded to the data."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(pack_text(key) + pack_value(value) for key, value in metadata.items())
    offset = 0
    for name, (kind, shape) in tensors.items():
        head += pack_tensor(name, kind, shape, offset)
        offset += -(-count_bytes(kind, shape) // ALIGNMENT) * ALIGNMENT
    return head + b"\0" * (-len(head) % ALIGNMENT)


def pack_tensor(name: str, kind: str, shape: Sequence[int], offset: int) -> bytes:
    """Return the entry of one tensor, whose shape is torch's."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return pack_text(name) + sizes + struct.pack("<IQ", TYPES[kind][0], offset)


def count_bytes(kind: str, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor's data."""
    _, block, num_bytes = TYPES[kind]
    return math.prod(shape) // block * num_bytes


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Tensors) -> Path:
    """Write a complete file without data."""
    head = pack_header(metadata, tensors)
    size = len(head)
    for kind, shape in tensors.values():
        size = -(-size // ALIGNMENT) * ALIGNMENT + count_bytes(kind, shape)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def moe_metadata(**own: Any) -> dict[str, Any]:
    """Return the metadata of a small Qwen3-MoE; names of `own` are the architecture's own."""
    sizes = {
        "block_count": 2,
        "context_length": 4096,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "expert_count": 8,
        "expert_used_count": 2,
        "expert_feed_forward_length": 256,
        "vocab_size": 1024,
    }
    named = {name.replace("__", "."): value for name, value in own.items()}
    return {
        "general.architecture": "qwen3moe",
        "general.name": "Tiny",
        **{f"qwen3moe.{name}": value for name, value in (sizes | named).items()},
    }


def moe_tensors(
    kind: str = "q4_K", *, num_layers: int = 2
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors of that model, with matrices of a type."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": (kind, (1024, 256)),
        "output_norm.weight": ("f32", (256,)),
        "output.weight": (kind, (1024, 256)),
    }
    for layer in range(num_layers):
        of_layer: dict[str, tuple[str, tuple[int, ...]]] = {
            "attn_norm": ("f32", (256,)),
            "attn_q": (kind, (256, 256)),
            "attn_k": (kind, (128, 256)),
            "attn_v": (kind, (128, 256)),
            "attn_output": (kind, (256, 256)),
            "attn_q_norm": ("f32", (64,)),
            "attn_k_norm": ("f32", (64,)),
            "ffn_norm": ("f32", (256,)),
            "ffn_gate_inp": ("f32", (8, 256)),
            "ffn_gate_exps": (kind, (8, 256, 256)),
            "ffn_up_exps": (kind, (8, 256, 256)),
            "ffn_down_exps": (kind, (8, 256, 256)),
        }
        tensors |= {f"blk.{layer}.{name}.weight": each for name, each in of_layer.items()}
    return tensors
