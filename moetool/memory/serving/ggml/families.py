"""The sizes of a model's graph from its configuration, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moetool.anatomy.config_fields import find_hidden_size, find_num_heads, read_count
from moetool.memory.serving.ggml.sizes import LatentSizes, ModelSizes, QueryNorm

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
    "dots1": "dots1",
    "glm4_moe": "glm4moe",
    "minimax_m2": "minimax-m2",
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
    special = _SPECIAL[architecture](config, geometry)
    return ModelSizes(
        architecture=architecture,
        vocab=vocab,
        hidden=hidden,
        num_layers=geometry.num_layers,
        num_heads=num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        num_experts=num_experts,
        num_chosen=num_chosen,
        width=read_count(config, "moe_intermediate_size") or dense_width,
        dense_width=dense_width,
        **special,
    )


def _read_gpt_oss(_fields: Any, geometry: CacheGeometry) -> dict[str, Any]:
    return {"has_biases": True, "window": geometry.window, "sliding": geometry.sliding}


def _read_qwen2(fields: Any, _geometry: CacheGeometry) -> dict[str, Any]:
    has_biases = bool(getattr(fields, "qkv_bias", True))
    return {"shared_width": fields.shared_expert_intermediate_size, "has_biases": has_biases}


def _read_routing(fields: Any) -> dict[str, Any]:
    """Return what decides the routing of DeepSeek-V2 and of those that followed it."""
    scale = float(getattr(fields, "routed_scaling_factor", 1.0))
    num_shared = read_count(fields, "n_shared_experts") or 0
    return {
        "num_groups": read_count(fields, "n_group") or 1,
        "num_chosen_groups": read_count(fields, "topk_group") or 1,
        "shared_width": fields.moe_intermediate_size * num_shared,
        "num_dense": read_count(fields, "first_k_dense_replace") or 0,
        "norms_weights": bool(getattr(fields, "norm_topk_prob", False)),
        "scales_weights": scale not in (0.0, 1.0),
        "has_score_bias": fields.model_type != "deepseek_v2",
    }


def _read_deepseek(fields: Any, _geometry: CacheGeometry) -> dict[str, Any]:
    latent = LatentSizes(
        query=read_count(fields, "q_lora_rank"),
        keys=fields.kv_lora_rank,
        plain=fields.qk_nope_head_dim,
        rotary=fields.qk_rope_head_dim,
        values=fields.v_head_dim,
    )
    return {**_read_routing(fields), "latent": latent}


def _read_glm4(fields: Any, _geometry: CacheGeometry) -> dict[str, Any]:
    has_norms = bool(getattr(fields, "use_qk_norm", True))
    return {
        **_read_routing(fields),
        "query_norm": QueryNorm.HEADS if has_norms else QueryNorm.NONE,
        "has_biases": bool(getattr(fields, "attention_bias", False)),
    }


def _fix(**sizes: Any) -> Callable[[Any, CacheGeometry], dict[str, Any]]:
    """Return a reader of sizes that a family's configuration doesn't change."""
    return lambda _fields, _geometry: sizes


_SPECIAL: dict[str, Callable[[Any, CacheGeometry], dict[str, Any]]] = {
    "llama": _fix(norms_weights=True),
    "olmoe": _fix(query_norm=QueryNorm.ROWS),
    "qwen2moe": _read_qwen2,
    "qwen3moe": _fix(norms_weights=True, query_norm=QueryNorm.HEADS),
    "deepseek2": _read_deepseek,
    "dots1": _read_glm4,
    "glm4moe": _read_glm4,
    "minimax-m2": _fix(norms_weights=True, query_norm=QueryNorm.ROWS, has_score_bias=True),
    "gpt-oss": _read_gpt_oss,
}
