"""Tiny random models of the families whose recording is proven."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

_COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# By family: what its configuration needs beyond the common part.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "deepseek_v3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "head_dim": 8,
        "num_key_value_heads": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 16},
}

DENSE_FAMILY = "llama"


def build_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """Return a tiny configuration of a family."""
    extra = FAMILIES.get(family, {})
    return CONFIG_MAPPING[family](**{**_COMMON, **extra, **overrides})


def build_model(family: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a tiny random model in float32, its routing as lively as a trained one's.

    Correction biases, where a family has them, are not zero: with zeros they would not matter.
    """
    config = build_config(family, **overrides)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    randomize(model, seed=seed)
    model.eval()
    return model


def randomize(model: PreTrainedModel, *, seed: int = 0) -> None:
    """Give a model new random weights in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.copy_(0.12 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith(("bias", "sinks")):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
