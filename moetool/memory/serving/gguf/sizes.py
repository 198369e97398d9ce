"""The sizes of a model's graph and caches, from the header of its GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moetool.checkpoint.gguf.files import GgufModel
from moetool.memory.serving.ggml.sizes import LatentSizes, LayerStyle, ModelSizes, QueryNorm
from moetool.memory.serving.gguf.styles import (
    Reader,
    Tensors,
    count_layers,
    fix,
    read_afmoe,
    read_cohere,
    read_dbrx,
    read_ernie,
    read_exaone,
    read_glm4,
    read_gpt_oss,
    read_granite,
    read_hunyuan3,
    read_llama4,
    read_mellum,
    read_routing,
    read_smallthinker,
)

# Architectures whose layers keep keys and values of all tokens, also where their graph isn't known.
_PLAIN_CACHES = ("qwen2", "qwen3", "llama", "dbrx", "granitemoe", "hy_v3")
# Tensors that scale others, as those of NVFP4 have.
_SCALES = ("scale", "scale.weight")


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
    has_one = "blk.0.attn_qkv.weight" in tensors
    style = replace(
        own.get("style", LayerStyle()),
        has_one_projection=has_one,
        has_output_bias="blk.0.attn_output.bias" in tensors,
        has_norm_biases="blk.0.attn_norm.bias" in tensors,
        has_head_bias="output.bias" in tensors,
    )
    if any(name.endswith(_SCALES) for name in tensors):
        return None
    dense = next((t for name, t in tensors.items() if ".ffn_up.weight" in name), None)
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
        num_dense=_count_dense(tensors, num_layers, step=style.moe_step),
        dense_width=0 if dense is None else dense.shape[0],
        has_biases=f"blk.0.attn_{'qkv' if has_one else 'q'}.bias" in tensors,
        **{**own, "style": style},
    )


def _count_dense(tensors: Tensors, num_layers: int, *, step: int) -> int:
    """Return the layers before the first one with experts, a period of dense ones less."""
    first = next(
        (n for n in range(num_layers) if f"blk.{n}.ffn_up_exps.weight" in tensors), num_layers
    )
    return max(first - step + 1, 0)


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


def _read_deepseek(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
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
    return {**read_routing(model, tensors), "latent": latent}


_SPECIAL: dict[str, Reader] = {
    "afmoe": read_afmoe,
    "bailingmoe": read_routing,
    "bailingmoe2": read_glm4,
    "cohere2moe": read_cohere,
    "dbrx": read_dbrx,
    "deepseek": fix(),
    "deepseek2": _read_deepseek,
    "dots1": read_glm4,
    "ernie4_5-moe": read_ernie,
    "exaone-moe": read_exaone,
    "glm4moe": read_glm4,
    "gpt-oss": read_gpt_oss,
    "granitemoe": read_granite,
    "hunyuan-moe": fix(
        norms_weights=True,
        query_norm=QueryNorm.HEADS,
        style=LayerStyle(norms_after_rotation=True),
    ),
    "hy_v3": read_hunyuan3,
    "llama": fix(norms_weights=True),
    "llama4": read_llama4,
    "mellum": read_mellum,
    "minimax-m2": fix(norms_weights=True, query_norm=QueryNorm.ROWS, has_score_bias=True),
    "olmoe": fix(query_norm=QueryNorm.ROWS),
    "phimoe": fix(norms_weights=True, style=LayerStyle(scales_queries=True)),
    "qwen2moe": fix(),
    "qwen3moe": fix(norms_weights=True, query_norm=QueryNorm.HEADS),
    "smallthinker": read_smallthinker,
}
