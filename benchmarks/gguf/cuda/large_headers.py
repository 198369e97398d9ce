"""Write headers of GGUF files in the sizes of published models, for receipts of llama.cpp.

Each line has a family, a mixture of types, a header and the file's length; data are holes:

    python -m benchmarks.gguf.cuda.large_headers > large_headers.jsonl
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from benchmarks.gguf.mixtures import write_mixture
from moetool.checkpoint.gguf.header import read_gguf_header
from tests.checkpoint.gguf.writer import write_gguf

# Sizes by name; `latent` and those after it are of latent attention.
_MODELS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {
        "architecture": "llama",
        "layers": 32,
        "hidden": 4096,
        "vocab": 32000,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "dense": 14336,
        "experts": 8,
        "chosen": 2,
        "width": 14336,
    },
    "gpt-oss-20b": {
        "architecture": "gpt-oss",
        "layers": 24,
        "hidden": 2880,
        "vocab": 201088,
        "heads": 64,
        "kv_heads": 8,
        "head_dim": 64,
        "dense": 2880,
        "experts": 32,
        "chosen": 4,
        "width": 2880,
        "window": 128,
    },
    "deepseek-v2-lite": {
        "architecture": "deepseek2",
        "layers": 27,
        "hidden": 2048,
        "vocab": 102400,
        "heads": 16,
        "dense": 10944,
        "experts": 64,
        "chosen": 6,
        "width": 1408,
        "latent": 512,
        "rotary": 64,
        "plain": 128,
        "values": 128,
        "shared": 2,
    },
    "deepseek-v3-cut": {
        "architecture": "deepseek2",
        "layers": 6,
        "hidden": 1024,
        "vocab": 32000,
        "heads": 32,
        "dense": 2048,
        "experts": 32,
        "chosen": 8,
        "width": 256,
        "latent": 512,
        "rotary": 64,
        "plain": 128,
        "values": 128,
        "shared": 1,
        "query_latent": 256,
        "groups": 8,
        "scale": 2.5,
    },
}
_MIXTURES = {
    "mixtral-8x7b": ("q4_K_M",),
    "gpt-oss-20b": ("mxfp4",),
    "deepseek-v2-lite": ("q4_K_M",),
    "deepseek-v3-cut": ("f16", "q4_K_M"),
}
_Shapes = dict[str, tuple[int, ...]]


def list_metadata(size: dict[str, Any]) -> dict[str, Any]:
    """Return a header's metadata, as llama.cpp's converter writes it."""
    own: dict[str, Any] = {
        "vocab_size": size["vocab"],
        "block_count": size["layers"],
        "context_length": 131072,
        "embedding_length": size["hidden"],
        "feed_forward_length": size["dense"],
        "attention.head_count": size["heads"],
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_used_count": size["chosen"],
        "expert_count": size["experts"],
    }
    if "latent" in size:
        own |= {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": size["latent"],
            "attention.key_length": size["latent"] + size["rotary"],
            "attention.value_length": size["latent"],
            "attention.key_length_mla": size["plain"] + size["rotary"],
            "attention.value_length_mla": size["values"],
            "rope.dimension_count": size["rotary"],
            "leading_dense_block_count": 1,
            "expert_feed_forward_length": size["width"],
            "expert_shared_count": size["shared"],
            "expert_group_count": size.get("groups", 1),
            "expert_group_used_count": max(size.get("groups", 1) // 2, 1),
            "expert_weights_scale": size.get("scale", 1.0),
            "expert_gating_func": 2 if "scale" in size else 1,
        }
        if "query_latent" in size:
            own |= {"attention.q_lora_rank": size["query_latent"], "expert_weights_norm": True}
    else:
        own |= {
            "attention.head_count_kv": size["kv_heads"],
            "attention.key_length": size["head_dim"],
            "attention.value_length": size["head_dim"],
            "rope.dimension_count": size["head_dim"],
        }
    if "window" in size:
        own |= {"attention.sliding_window": size["window"]}
        own |= {"expert_feed_forward_length": size["width"]}
    name = size["architecture"]
    return {
        "general.architecture": name,
        "general.file_type": 1,
        "tokenizer.ggml.model": "none",
        **{f"{name}.{key}": value for key, value in own.items()},
    }


def list_shapes(size: dict[str, Any], layer: int) -> _Shapes:
    """Return the shapes of a layer's tensors, by name."""
    hidden, experts, width = size["hidden"], size["experts"], size["width"]
    routed: _Shapes = {
        "ffn_gate_inp.weight": (experts, hidden),
        "ffn_gate_exps.weight": (experts, width, hidden),
        "ffn_up_exps.weight": (experts, width, hidden),
        "ffn_down_exps.weight": (experts, hidden, width),
    }
    if "latent" in size:
        if layer == 0:
            routed = _list_mlp(hidden, size["dense"], "")
        else:
            routed |= _list_mlp(hidden, width * size["shared"], "_shexp")
            if "scale" in size:
                routed["exp_probs_b.bias"] = (experts,)
        shapes = {**_list_latents(size), **routed, "ffn_norm.weight": (hidden,)}
    else:
        queries, keys = (size[key] * size["head_dim"] for key in ("heads", "kv_heads"))
        shapes = {
            "attn_q.weight": (queries, hidden),
            "attn_k.weight": (keys, hidden),
            "attn_v.weight": (keys, hidden),
            "attn_output.weight": (hidden, queries),
            **routed,
        }
        if size["architecture"] == "gpt-oss":
            shapes |= {
                f"{name.removesuffix('.weight')}.bias": (*shape[:-2], shape[-2])
                for name, shape in shapes.items()
            }
            shapes |= {"attn_sinks.weight": (size["heads"],)}
            shapes |= {"post_attention_norm.weight": (hidden,)}
        else:
            shapes |= {"ffn_norm.weight": (hidden,)}
    return {**shapes, "attn_norm.weight": (hidden,)}


def _list_mlp(hidden: int, width: int, end: str) -> _Shapes:
    return {
        f"ffn_gate{end}.weight": (width, hidden),
        f"ffn_up{end}.weight": (width, hidden),
        f"ffn_down{end}.weight": (hidden, width),
    }


def _list_latents(size: dict[str, Any]) -> _Shapes:
    hidden, heads, latent = size["hidden"], size["heads"], size["latent"]
    query, head_dim = size.get("query_latent"), size["plain"] + size["rotary"]
    shapes: _Shapes = {"attn_q.weight": (heads * head_dim, hidden)}
    if query is not None:
        shapes = {
            "attn_q_a.weight": (query, hidden),
            "attn_q_a_norm.weight": (query,),
            "attn_q_b.weight": (heads * head_dim, query),
        }
    return {
        **shapes,
        "attn_kv_a_mqa.weight": (latent + size["rotary"], hidden),
        "attn_kv_a_norm.weight": (latent,),
        "attn_k_b.weight": (heads, latent, size["plain"]),
        "attn_v_b.weight": (heads, size["values"], latent),
        "attn_output.weight": (hidden, heads * size["values"]),
    }


def main() -> None:
    """Print a line for each model and mixture."""
    for name, size in _MODELS.items():
        hidden, vocab = size["hidden"], size["vocab"]
        shapes: _Shapes = {"token_embd.weight": (vocab, hidden)}
        for layer in range(size["layers"]):
            of_layer = list_shapes(size, layer)
            shapes |= {f"blk.{layer}.{each}": shape for each, shape in of_layer.items()}
        shapes |= {"output_norm.weight": (hidden,), "output.weight": (vocab, hidden)}
        tensors = {
            each: ("f32" if len(shape) == 1 or "_inp" in each or "bias" in each else "f16", shape)
            for each, shape in shapes.items()
        }
        for mixture in _MIXTURES[name]:
            with tempfile.TemporaryDirectory() as folder:
                plain = write_gguf(Path(folder, "plain.gguf"), list_metadata(size), tensors)
                path = Path(folder, "model.gguf")
                write_mixture(read_gguf_header(plain), path, mixture)
                header = read_gguf_header(path)
                with path.open("rb") as file:
                    content = file.read(header.header_bytes)
            line = {
                "family": name,
                "mixture": mixture,
                "file_bytes": header.file_bytes,
                "header": base64.b64encode(zlib.compress(content, 9)).decode(),
            }
            sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
