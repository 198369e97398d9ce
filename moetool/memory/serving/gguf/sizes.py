"""The sizes of a model's graph and caches, from the header of its GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moetool.anatomy.gguf.table import count_mtp_layers
from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.header import GgufTensor
from moetool.memory.serving.ggml.sizes import LatentSizes, ModelSizes, QueryNorm

# Architectures, besides those whose graph is known, whose layers keep keys and values of all tokens.
# All but the first two, which are dense, were compared with llama.cpp.
_PLAIN_CACHES = ("qwen2", "qwen3", "llama", "dbrx", "granitemoe", "hy_v3")


@dataclass(frozen=True)
class LayerCache:
    """The numbers that one layer caches of a token.

    Attributes:
        keys: Numbers of its keys, or of its latent.
        values: Numbers of its values; 0 with a latent.
        is_sliding: Whether it keeps a window only.
    """

    keys: int
    values: int
    is_sliding: bool


def count_layers(model: GgufModel) -> int | None:
    """Return how many layers run for each token."""
    stated = model.read_count("block_count")
    return None if stated is None else stated - count_mtp_layers(model)


def list_caches(model: GgufModel) -> list[LayerCache] | None:
    """Return what each layer caches; None if the rules for the architecture aren't known here."""
    sizes = read_model_sizes(model)
    if sizes is not None:
        sliding = sizes.sliding or (False,) * sizes.num_layers
        if sizes.latent is not None:
            keys, values = sizes.latent.keys + sizes.latent.rotary, 0
        else:
            keys = values = sizes.num_kv_heads * sizes.head_dim
        return [LayerCache(keys, values, each) for each in sliding]
    if model.architecture not in _PLAIN_CACHES:
        return None
    num_layers, heads = count_layers(model), _read_per_layer(model, "attention.head_count_kv")
    dims = [_read_head_dim(model, kind) for kind in ("key", "value")]
    if num_layers is None or heads is None or None in dims or len(heads) < num_layers:
        return None
    keys_dim, values_dim = (dim or 0 for dim in dims)
    return [LayerCache(n * keys_dim, n * values_dim, False) for n in heads[:num_layers]]


def read_model_sizes(model: GgufModel) -> ModelSizes | None:
    """Return what decides the graph that llama.cpp builds.

    Returns:
        The sizes; None for an architecture or a variant whose graph is not known here.
    """
    special = _SPECIAL.get(model.architecture)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    table, num_layers = tensors.get("token_embd.weight"), count_layers(model)
    heads = model.read_count("attention.head_count")
    kv_heads = model.read_count("attention.head_count_kv")
    num_experts, num_chosen = (model.read_count(f"expert_{key}count") for key in ("", "used_"))
    if special is None or table is None or not (num_layers and heads and kv_heads):
        return None
    up = next((t for name, t in tensors.items() if ".ffn_up_exps.weight" in name), None)
    if not num_experts or not num_chosen or up is None or len(up.shape) != 3:
        return None
    own = special(model, tensors)
    head_dim = _read_head_dim(model, "key")
    has_one_width = head_dim is not None and head_dim == _read_head_dim(model, "value")
    if own is None or not (has_one_width or "latent" in own):
        return None
    dense = tensors.get("blk.0.ffn_up.weight")
    shared = next((t for name, t in tensors.items() if ".ffn_up_shexp.weight" in name), None)
    return ModelSizes(
        architecture=model.architecture,
        vocab=table.shape[0],
        hidden=table.shape[1],
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim or 0,
        num_experts=num_experts,
        num_chosen=num_chosen,
        width=up.shape[1],
        shared_width=0 if shared is None else shared.shape[0],
        num_dense=_count_dense(tensors, num_layers),
        dense_width=0 if dense is None else dense.shape[0],
        has_biases="blk.0.attn_q.bias" in tensors,
        **own,
    )


_Tensors = dict[str, GgufTensor]


def _count_dense(tensors: _Tensors, num_layers: int) -> int:
    """Return the layers before the first one with experts."""
    return next(
        (n for n in range(num_layers) if f"blk.{n}.ffn_up_exps.weight" in tensors), num_layers
    )


def _read_head_dim(model: GgufModel, kind: str) -> int | None:
    stated = model.read_count(f"attention.{kind}_length")
    if stated is not None:
        return stated
    hidden, heads = (model.read_count(key) for key in ("embedding_length", "attention.head_count"))
    return hidden // heads if hidden and heads else None


def _read_per_layer(model: GgufModel, key: str) -> list[int] | None:
    """Return a number of each layer, which may be stated once for all."""
    value = model.read(key)
    if type(value) is int:
        return [value] * (count_layers(model) or 0)
    is_list = isinstance(value, list) and all(type(each) is int for each in value)
    return value if is_list else None


def _fix(**sizes: Any) -> Callable[[GgufModel, _Tensors], dict[str, Any] | None]:
    """Return a reader of sizes that a file doesn't change."""
    return lambda _model, _tensors: sizes


def _read_gpt_oss(model: GgufModel, _tensors: _Tensors) -> dict[str, Any] | None:
    window, num_layers = model.read_count("attention.sliding_window"), count_layers(model)
    if not window or not num_layers:
        return None
    # Every second layer, from the first on (`set_swa_pattern(2)` in src/models/openai-moe.cpp).
    return {"window": window, "sliding": tuple(n % 2 == 0 for n in range(num_layers))}


def _read_routing(model: GgufModel, tensors: _Tensors) -> dict[str, Any]:
    """Return what decides the routing of DeepSeek-V2 and of those that followed it."""
    scale = model.read("expert_weights_scale")
    return {
        "num_groups": model.read_count("expert_group_count") or 1,
        "num_chosen_groups": model.read_count("expert_group_used_count") or 1,
        "norms_weights": bool(model.read("expert_weights_norm")),
        "scales_weights": (scale or 0.0) not in (0.0, 1.0),
        # Sigmoids take the same memory as shares do.
        "has_score_bias": any(".exp_probs_b" in name for name in tensors),
    }


def _read_deepseek(model: GgufModel, tensors: _Tensors) -> dict[str, Any] | None:
    names = ("kv_lora_rank", "key_length_mla", "value_length_mla")
    keys, whole, values = (model.read_count(f"attention.{name}") for name in names)
    rotary = model.read_count("rope.dimension_count")
    if not (keys and whole and values and rotary):
        return None
    if "blk.0.attn_k_b.weight" not in tensors:
        return None
    latent = LatentSizes(
        query=model.read_count("attention.q_lora_rank") or None,
        keys=keys,
        plain=whole - rotary,
        rotary=rotary,
        values=values,
    )
    return {**_read_routing(model, tensors), "latent": latent}


def _read_glm4(model: GgufModel, tensors: _Tensors) -> dict[str, Any] | None:
    has_norms = "blk.0.attn_q_norm.weight" in tensors
    routing = _read_routing(model, tensors)
    return {**routing, "query_norm": QueryNorm.HEADS if has_norms else QueryNorm.NONE}


_SPECIAL: dict[str, Callable[[GgufModel, _Tensors], dict[str, Any] | None]] = {
    "llama": _fix(norms_weights=True),
    "olmoe": _fix(query_norm=QueryNorm.ROWS),
    "qwen2moe": _fix(),
    "qwen3moe": _fix(norms_weights=True, query_norm=QueryNorm.HEADS),
    "deepseek2": _read_deepseek,
    "dots1": _read_glm4,
    "glm4moe": _read_glm4,
    "minimax-m2": _fix(norms_weights=True, query_norm=QueryNorm.ROWS, has_score_bias=True),
    "gpt-oss": _read_gpt_oss,
}
