"""Files of the same tensors in other types, as quantizers mix them, without data."""

from __future__ import annotations

import re
from pathlib import Path

from moetool.checkpoint.gguf.header import GgufHeader
from tests.checkpoint.gguf.writer import TYPES, write_gguf

# By mixture: types by name, the first that matches; all other matrices keep theirs.
MIXTURES: dict[str, tuple[tuple[str, str], ...]] = {
    "f16": (),
    "q4_K_M": (("output|ffn_down", "q6_K"), ("attn|exps|shexp|ffn|token_embd", "q4_K")),
    "q8_0": (("", "q8_0"),),
    "iq": (("exps", "iq2_xxs"), ("attn|ffn|shexp", "iq4_xs"), ("output|token_embd", "q6_K")),
    "mxfp4": (("exps", "mxfp4"), ("", "q8_0")),
}
# Families with a further layer that predicts the token after the next one, which is not loaded.
WITH_MTP = ("glm4_moe", "deepseek_v3")
MTP = "mtp"
_VECTORS = re.compile(r"norm|_inp|exp_probs|bias|sinks")


def write_mixture(header: GgufHeader, path: Path, mixture: str) -> Path:
    """Write a file with the tensors of another one, in the types of a mixture where rows fit."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in header.tensors:
        kind = tensor.type.name
        is_matrix = len(tensor.shape) > 1 and not _VECTORS.search(tensor.name)
        if is_matrix:
            kind = next(
                (each for words, each in MIXTURES[mixture] if re.search(words, tensor.name)), kind
            )
            if tensor.shape[-1] % TYPES[kind][1]:
                kind = "q8_0"
        tensors[tensor.name] = (kind, tensor.shape)
    return write_gguf(path, header.metadata, tensors)


def write_with_mtp(header: GgufHeader, path: Path) -> Path:
    """Write a file with the tensors of another one, and a layer that predicts further tokens."""
    architecture = header.metadata["general.architecture"]
    number = header.metadata[f"{architecture}.block_count"]
    hidden = header.metadata[f"{architecture}.embedding_length"]
    tensors = {tensor.name: (tensor.type.name, tensor.shape) for tensor in header.tensors}
    last, further = f"blk.{number - 1}.", f"blk.{number}."
    tensors |= {
        name.replace(last, further): each for name, each in tensors.items() if name.startswith(last)
    }
    tensors[f"{further}nextn.eh_proj.weight"] = ("f16", (hidden, 2 * hidden))
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        tensors[f"{further}nextn.{norm}.weight"] = ("f32", (hidden,))
    own = {
        f"{architecture}.block_count": number + 1,
        f"{architecture}.nextn_predict_layers": 1,
    }
    return write_gguf(path, {**header.metadata, **own}, tensors)
