"""Headers of small GGUF files of families that no tiny model was converted of, or only too small ones.

Tensors and metadata are those that llama.cpp asks for (src/models); data are holes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoint.gguf.writer import write_gguf

LAYERS, HIDDEN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 6, 512, 4096, 8, 2, 64
EXPERTS, CHOSEN, WIDTH, SHARED, DENSE = 16, 4, 256, 384, 1024
Shapes = dict[str, tuple[int, ...]]

_ATTENTION: Shapes = {
    "attn_norm.weight": (HIDDEN,),
    "attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
}
_FUSED: Shapes = {
    "attn_norm.weight": (HIDDEN,),
    "attn_qkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    "attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
}
_NORMS: Shapes = {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
_BIASES: Shapes = {
    "attn_q.bias": (HEADS * HEAD_DIM,),
    "attn_k.bias": (KV_HEADS * HEAD_DIM,),
    "attn_v.bias": (KV_HEADS * HEAD_DIM,),
    "attn_output.bias": (HIDDEN,),
    "attn_norm.bias": (HIDDEN,),
    "ffn_norm.bias": (HIDDEN,),
}
_EXPERTS: Shapes = {
    "ffn_gate_inp.weight": (EXPERTS, HIDDEN),
    "ffn_gate_exps.weight": (EXPERTS, WIDTH, HIDDEN),
    "ffn_up_exps.weight": (EXPERTS, WIDTH, HIDDEN),
    "ffn_down_exps.weight": (EXPERTS, HIDDEN, WIDTH),
}
_SCORES: Shapes = {"exp_probs_b.bias": (EXPERTS,)}
_NORM: Shapes = {"ffn_norm.weight": (HIDDEN,)}
_POST: Shapes = {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
_GATE: Shapes = {"attn_gate.weight": (HEADS * HEAD_DIM, HIDDEN)}


def _mlp(width: int, end: str = "") -> Shapes:
    return {
        f"ffn_gate{end}.weight": (width, HIDDEN),
        f"ffn_up{end}.weight": (width, HIDDEN),
        f"ffn_down{end}.weight": (HIDDEN, width),
    }


def _repeat(shapes: Shapes) -> Callable[[int], Shapes]:
    return lambda _layer: shapes


def _dense_first(routed: Shapes, rest: Shapes) -> Callable[[int], Shapes]:
    return lambda layer: {**rest, **(_mlp(DENSE) if layer == 0 else routed)}


def _every_second(routed: Shapes, rest: Shapes) -> Callable[[int], Shapes]:
    return lambda layer: {**rest, **(routed if layer % 2 else _mlp(DENSE))}


_RMS, _PLAIN = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_SHARED = _mlp(WIDTH, "_shexp")
_SCALED = {"expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2}
_WINDOW = {"attention.sliding_window": 128}
# By architecture and variant: metadata, and tensors of a layer.
FAMILIES: dict[str, tuple[dict[str, Any], Callable[[int], Shapes]]] = {
    "afmoe": (
        {"leading_dense_block_count": 1, "expert_shared_count": 1, **_SCALED, **_WINDOW},
        _dense_first(_EXPERTS | _SHARED | _SCORES, _ATTENTION | _NORMS | _NORM | _POST | _GATE),
    ),
    "bailingmoe": (
        {"expert_shared_count": 1, "expert_weights_norm": True, "expert_weights_scale": 1.0},
        _repeat(_ATTENTION | _NORM | _EXPERTS | _SHARED),
    ),
    "bailingmoe2": (
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            **_SCALED,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        },
        _dense_first(_EXPERTS | _SHARED | _SCORES, _FUSED | _NORMS | _NORM),
    ),
    "cohere2moe": (
        {
            "leading_dense_block_count": 1,
            "logit_scale": 0.0625,
            **_WINDOW,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "expert_shared_feed_forward_length": WIDTH,
        },
        _dense_first(_EXPERTS | _SHARED, _ATTENTION),
    ),
    "dbrx": (
        {"attention.clamp_kqv": 8.0},
        _repeat(_FUSED | _EXPERTS | {"attn_output_norm.weight": (HIDDEN,)}),
    ),
    "deepseek": (
        {"leading_dense_block_count": 1, "expert_shared_count": 1, "expert_weights_scale": 1.0},
        _dense_first(_EXPERTS | _SHARED, _ATTENTION | _NORM),
    ),
    "ernie4_5-moe": (
        {
            "leading_dense_block_count": 1,
            "interleave_moe_layer_step": 1,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": SHARED,
        },
        _dense_first(_EXPERTS | _mlp(SHARED, "_shexp") | _SCORES, _ATTENTION | _NORM),
    ),
    "exaone-moe": (
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            **_SCALED,
            **_WINDOW,
            "expert_shared_feed_forward_length": WIDTH,
        },
        _dense_first(_EXPERTS | _SHARED | _SCORES, _ATTENTION | _NORMS | _NORM),
    ),
    "granitemoe": (
        {
            "attention.scale": 0.5,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 6.0,
            "expert_shared_feed_forward_length": SHARED,
        },
        _repeat(_ATTENTION | _NORM | _EXPERTS | _mlp(SHARED, "_shexp")),
    ),
    "hunyuan-moe": (
        {"expert_shared_feed_forward_length": SHARED},
        _repeat(_ATTENTION | _NORMS | _NORM | _EXPERTS | _mlp(SHARED, "_shexp")),
    ),
    "hy_v3": (
        {"leading_dense_block_count": 1, "expert_shared_feed_forward_length": WIDTH, **_SCALED},
        _dense_first(_EXPERTS | _SHARED | {"exp_probs_b": (EXPERTS,)}, _ATTENTION | _NORMS | _NORM),
    ),
    "llama4": (
        {"interleave_moe_layer_step": 2, "expert_shared_feed_forward_length": WIDTH},
        _every_second(_EXPERTS | _SHARED, _ATTENTION | _NORM),
    ),
    "mellum": (_WINDOW, _repeat(_ATTENTION | _NORMS | _NORM | _EXPERTS)),
    "phimoe": ({}, _repeat(_ATTENTION | _BIASES | _NORM | _EXPERTS)),
    "smallthinker": (
        {"attention.sliding_window": 4096, "expert_gating_func": 2},
        _repeat(_ATTENTION | _NORM | _EXPERTS),
    ),
}
_WITHOUT_DENSE = ("dbrx", "granitemoe", "hunyuan-moe", "phimoe")
_WITH_MEANS = ("dbrx", "cohere2moe")


def write_family(architecture: str, path: Path, *, tensor_type: str = "f16") -> Path:
    """Write a file without data.

    Args:
        architecture: One of `FAMILIES`.
        path: The file.
        tensor_type: The type of matrices.
    """
    own, list_layer = FAMILIES[architecture]
    sizes = {
        "vocab_size": VOCAB,
        "block_count": LAYERS,
        "context_length": 131072,
        "embedding_length": HIDDEN,
        "feed_forward_length": WIDTH if architecture in _WITHOUT_DENSE else DENSE,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM,
        "expert_count": EXPERTS,
        "expert_used_count": CHOSEN,
        "expert_feed_forward_length": WIDTH,
        _PLAIN if architecture in _WITH_MEANS else _RMS: 1e-5,
        **own,
    }
    shapes: Shapes = {"token_embd.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in list_layer(layer).items()}
    shapes |= {"output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN)}
    if architecture == "phimoe":
        shapes |= {"output_norm.bias": (HIDDEN,), "output.bias": (VOCAB,)}
    tensors = {
        name: ("f32" if len(shape) == 1 or "_inp" in name else tensor_type, shape)
        for name, shape in shapes.items()
    }
    metadata = {
        "general.architecture": architecture,
        "general.file_type": 1,
        "tokenizer.ggml.model": "none",
        **{f"{architecture}.{name}": value for name, value in sizes.items()},
    }
    return write_gguf(path, metadata, tensors)
