"""Fields that a family needs together, or that several families need."""

from __future__ import annotations

from typing import Any

from tests.families.tiny.sizes import Fields

# An out-of-vocabulary id for the placeholders whose default is a small number.
NO_TOKEN = 1000
MULTI_HEAD: Fields = {"num_key_value_heads": 4}
LINEAR: Fields = {"layer_types": ["linear_attention", "full_attention"] * 2}
SLIDING: Fields = {"layer_types": ["sliding_attention", "full_attention"] * 2}
NEMOTRON_H: Fields = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "chunk_size": 8,
    "n_groups": 2,
    "use_mamba_kernels": False,
}
LLAMA4: Fields = {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 96}
MINIMAX_M3: Fields = {
    "dense_intermediate_size": 96,
    "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    "index_block_size": 4,
    "index_topk_blocks": 2,
}
GEMMA4: Fields = {
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
}
INKLING: Fields = {
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 16,
    "rel_extent": 16,
}
DOTS3_NOTE: Fields = {
    **MULTI_HEAD,
    "shared_experts_intermediate_size": 48,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
}


def mrope(*sections: int, **extra: Any) -> dict[str, Any]:
    """Return rotary positions in three dimensions, as vision-language models have them."""
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": list(sections),
        **extra,
    }
