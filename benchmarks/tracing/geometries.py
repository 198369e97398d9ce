"""Published geometries, for models with random weights."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

# The model type of each, and the fields of its configuration.
GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "OLMoE-1B-7B": (
        "olmoe",
        {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "vocab_size": 50304,
        },
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
        },
    ),
    "Mixtral-8x7B": (
        "mixtral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
        },
    ),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "vocab_size": 102400,
        },
    ),
}


def make_config(name: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a geometry, with some fields changed."""
    model_type, values = GEOMETRIES[name]
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](**values | changes)
    return config


def make_cut_config(label: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a geometry with fewer layers and tokens.

    Args:
        label: Such as `Mixtral-8x7B, 2 layers`.
        changes: Further fields.
    """
    name, _, depth = label.partition(", ")
    fields = {
        "num_hidden_layers": int(depth.split()[0]),
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
    return make_config(name, **fields | changes)
