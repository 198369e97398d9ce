"""Write the header of a GGUF file of Qwen3-30B-A3B, in the types that llama-quantize's Q4_K_M chooses.

python -m benchmarks.gguf.headers.published > docs/models/qwen3-30b-a3b.gguf-header
"""

from __future__ import annotations

import base64
import sys
import zlib

from moetool.catalogue.published import read_published_config
from tests.checkpoint.gguf.writer import pack_header

_Q4_K_M = 15


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """Return whether a layer's most sensitive matrices have six bits (`use_more_bits`)."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def make_header() -> bytes:
    """Return the header, without a vocabulary."""
    config = read_published_config("qwen3-30b-a3b")
    size = {name: value for name, value in config.items() if isinstance(value, int)}
    hidden, num_layers, vocab = (
        size[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    heads, kv_heads, head_dim, experts, width = (
        size[key]
        for key in (
            *("num_attention_heads", "num_key_value_heads", "head_dim"),
            *("num_experts", "moe_intermediate_size"),
        )
    )
    own = {
        "block_count": num_layers,
        "context_length": size["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": size["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "expert_count": experts,
        "expert_used_count": size["num_experts_per_tok"],
        "expert_feed_forward_length": width,
    }
    metadata = {
        "general.architecture": "qwen3moe",
        "general.name": "Qwen3 30B A3B",
        "general.file_type": _Q4_K_M,
        **{f"qwen3moe.{name}": value for name, value in own.items()},
    }
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "output.weight": ("q6_K", (vocab, hidden)),
        "output_norm.weight": ("f32", (hidden,)),
        "token_embd.weight": ("q4_K", (vocab, hidden)),
    }
    for layer in range(num_layers):
        more = "q6_K" if _has_more_bits(layer, num_layers) else "q4_K"
        of_layer: dict[str, tuple[str, tuple[int, ...]]] = {
            "attn_k": ("q4_K", (kv_heads * head_dim, hidden)),
            "attn_k_norm": ("f32", (head_dim,)),
            "attn_norm": ("f32", (hidden,)),
            "attn_output": ("q4_K", (hidden, heads * head_dim)),
            "attn_q": ("q4_K", (heads * head_dim, hidden)),
            "attn_q_norm": ("f32", (head_dim,)),
            "attn_v": (more, (kv_heads * head_dim, hidden)),
            "ffn_down_exps": (more, (experts, hidden, width)),
            "ffn_gate_exps": ("q4_K", (experts, width, hidden)),
            "ffn_gate_inp": ("f32", (experts, hidden)),
            "ffn_norm": ("f32", (hidden,)),
            "ffn_up_exps": ("q4_K", (experts, width, hidden)),
        }
        tensors |= {f"blk.{layer}.{name}.weight": each for name, each in of_layer.items()}
    return pack_header(metadata, tensors)


def main() -> None:
    """Print the header, compressed."""
    sys.stdout.write(base64.encodebytes(zlib.compress(make_header(), 9)).decode())


if __name__ == "__main__":
    main()
