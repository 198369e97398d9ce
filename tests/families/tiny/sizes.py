"""Small values of the fields that tiny configurations share."""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 256
HIDDEN_SIZE = 64
NUM_EXPERTS = 8
TOP_K = 3

Fields = dict[str, Any]

TEXT: Fields = {
    "vocab_size": VOCAB_SIZE,
    "unpadded_vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
    # Width and depth.
    "hidden_size": HIDDEN_SIZE,
    "d_model": HIDDEN_SIZE,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    # Attention.
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    # Routed experts.
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_experts_per_token": TOP_K,
    "top_k_experts": TOP_K,
    "moe_k": TOP_K,
    "moe_topk": TOP_K,
    "moe_intermediate_size": 40,
    "moe_hidden_size": 48,
    # A token chooses among the experts of one of two groups.
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    # Shared experts.
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    # The first layer is dense.
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "mlp_only_layers": [0],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}

# Vision and audio towers are never run: they only have to exist.
TOWER: Fields = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "embed_dim": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "head_dim": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "image_size": 56,
    "patch_size": 14,
    "position_embedding_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
    "downsample_hidden_size": 16,
    "output_channels": 16,
    "downsample_channels": [16, 32],
    "mlp_dim": 48,
}
