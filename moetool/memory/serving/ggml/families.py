"""The sizes of a model's graph from its configuration, as llama.cpp's converter writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.anatomy.config_fields import find_hidden_size, find_num_heads, read_count
from moetool.memory.serving.ggml.sizes import LatentSizes, ModelSizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from moetool.memory.serving.geometry import CacheGeometry

# The architecture that each family is converted to, where its graph is known here.
ARCHITECTURES = {
    "mixtral": "llama",
    "olmoe": "olmoe",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gpt_oss": "gpt-oss",
}


def read_sizes(config: PretrainedConfig, geometry: CacheGeometry) -> ModelSizes | None:
    """Return what decides the graph that llama.cpp builds for a model.

    Args:
        config: The configuration of the language model.
        geometry: What its layers cache.

    Returns:
        The sizes; None for a family whose graph is not known here.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    num_experts, num_chosen = read_count(config, *names), read_count(config, "num_experts_per_tok")
    vocab, hidden = read_count(config, "vocab_size"), find_hidden_size(config)
    num_heads, dense_width = find_num_heads(config), read_count(config, "intermediate_size")
    if architecture is None or not (num_experts and num_chosen and vocab and hidden):
        return None
    if not num_heads or not dense_width:
        return None
    fields: Any = config
    layers = geometry.num_layers
    special: dict[str, Any] = {}
    if architecture == "deepseek2":
        special = _read_deepseek(fields)
    elif architecture == "gpt-oss":
        special = {"has_biases": True, "window": geometry.window, "sliding": geometry.sliding}
    elif architecture == "qwen2moe":
        special = {"shared_width": fields.shared_expert_intermediate_size}
        special["has_biases"] = bool(getattr(fields, "qkv_bias", True))
    else:
        special = {"norms_weights": architecture != "olmoe"}
    return ModelSizes(
        architecture=architecture,
        vocab=vocab,
        hidden=hidden,
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        num_experts=num_experts,
        num_chosen=num_chosen,
        width=read_count(config, "moe_intermediate_size") or dense_width,
        dense_width=dense_width,
        **special,
    )


def _read_deepseek(fields: Any) -> dict[str, Any]:
    is_sigmoid = fields.model_type == "deepseek_v3"
    scale = float(getattr(fields, "routed_scaling_factor", 1.0))
    return {
        "num_groups": read_count(fields, "n_group") or 1,
        "num_chosen_groups": read_count(fields, "topk_group") or 1,
        "shared_width": fields.moe_intermediate_size
        * (read_count(fields, "n_shared_experts") or 0),
        "num_dense": read_count(fields, "first_k_dense_replace") or 0,
        "latent": LatentSizes(
            query=read_count(fields, "q_lora_rank"),
            keys=fields.kv_lora_rank,
            plain=fields.qk_nope_head_dim,
            rotary=fields.qk_rope_head_dim,
            values=fields.v_head_dim,
        ),
        "norms_weights": bool(getattr(fields, "norm_topk_prob", False)),
        "scales_weights": scale not in (0.0, 1.0),
        "has_score_bias": is_sigmoid,
    }
