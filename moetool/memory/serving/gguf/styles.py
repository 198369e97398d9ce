"""Parts of layers that only some architectures have, from the header of a GGUF file.

Each function follows one file of src/models of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moetool.anatomy.gguf.table import count_mtp_layers
from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.header import GgufTensor
from moetool.memory.serving.ggml.sizes import LayerStyle, QueryNorm

Tensors = Mapping[str, GgufTensor]
Reader = Callable[[GgufModel, Tensors], dict[str, Any] | None]

# Without another number, every fourth layer is not rotated, or has no window.
_PERIOD = 4
# Windows that two architectures have whatever the file says.
_LLAMA4_WINDOW, _SMALLTHINKER_WINDOW = 8192, 4096


def count_layers(model: GgufModel) -> int | None:
    """Return how many layers run for each token."""
    stated = model.read_count("block_count")
    return None if stated is None else stated - count_mtp_layers(model)


def fix(**sizes: Any) -> Reader:
    """Return a reader of sizes that a file doesn't change, besides the routing's factor."""
    return lambda model, _tensors: {"scales_weights": _scales_weights(model), **sizes}


def read_routing(model: GgufModel, tensors: Tensors) -> dict[str, Any]:
    """Return what decides the routing of DeepSeek-V2 and of those that followed it."""
    return {
        "num_groups": model.read_count("expert_group_count") or 1,
        "num_chosen_groups": model.read_count("expert_group_used_count") or 1,
        "norms_weights": bool(model.read("expert_weights_norm")),
        "scales_weights": _scales_weights(model),
        # Sigmoids take the same memory as shares do.
        "has_score_bias": any(".exp_probs_b" in name for name in tensors),
    }


def _scales_weights(model: GgufModel) -> bool:
    return (model.read("expert_weights_scale") or 0.0) not in (0.0, 1.0)


def read_windows(
    model: GgufModel, *, is_full_first: bool = False, window: int | None = None
) -> dict[str, Any] | None:
    """Return the window, and which layers have it (`load_swa_pattern`, src/llama-model.cpp).

    Args:
        model: The file's headers.
        is_full_first: Whether the first of four layers has no window, where the file says nothing.
        window: The window if it is not the file's.
    """
    stated, num_layers = model.read_count("attention.sliding_window"), count_layers(model)
    pattern = model.read("attention.sliding_window_pattern")
    if not stated or not num_layers:
        return None
    if isinstance(pattern, list):
        sliding = tuple(bool(each) for each in pattern[:num_layers])
    else:
        period = pattern if type(pattern) is int and pattern > 0 else _PERIOD
        full = 0 if is_full_first else period - 1
        sliding = tuple(number % period != full for number in range(num_layers))
    return {"window": window or stated, "sliding": sliding} if len(sliding) == num_layers else None


def read_gpt_oss(model: GgufModel, _tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows of gpt-oss."""
    window, num_layers = model.read_count("attention.sliding_window"), count_layers(model)
    if not window or not num_layers:
        return None
    # Every second layer, from the first on (`set_swa_pattern(2)` in src/models/openai-moe.cpp).
    return {"window": window, "sliding": tuple(n % 2 == 0 for n in range(num_layers))}


def read_glm4(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
    """Return the routing of GLM-4.5, and of others with or without norms of queries."""
    has_norms = "blk.0.attn_q_norm.weight" in tensors
    routing = read_routing(model, tensors)
    return {**routing, "query_norm": QueryNorm.HEADS if has_norms else QueryNorm.NONE}


def read_hunyuan3(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
    """Return the routing of Hunyuan 3, which chooses tokens with logits after the last norm."""
    own = read_routing(model, tensors)
    style = LayerStyle(selects_late=True)
    return {**own, "query_norm": QueryNorm.HEADS, "style": style}


def read_ernie(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
    """Return the routing of ERNIE 4.5, whose weights are always divided by their sum."""
    step = model.read_count("interleave_moe_layer_step")
    if not step:
        return None
    style = LayerStyle(moe_step=step)
    return {**read_routing(model, tensors), "norms_weights": True, "style": style}


def read_granite(model: GgufModel, _tensors: Tensors) -> dict[str, Any] | None:
    """Return the factors of Granite; without rotary positions, or with images, nothing."""
    if model.read("rope.scaling.finetuned") is False or model.read("deepstack_mapping") is not None:
        return None
    style = LayerStyle(
        scales_embedding=bool(model.read("embedding_scale")),
        scales_residuals=bool(model.read("residual_scale")),
        scales_logits=True,
    )
    return {"norms_weights": True, "scales_weights": _scales_weights(model), "style": style}


def read_dbrx(model: GgufModel, _tensors: Tensors) -> dict[str, Any] | None:
    """Return the norms and limits of DBRX."""
    is_clamped = (model.read("attention.clamp_kqv") or 0.0) > 0
    return {
        "norms_weights": True,
        "style": LayerStyle(has_layer_norms=True, clamps_projections=is_clamped),
    }


def read_mellum(model: GgufModel, _tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows of Mellum, which may have none."""
    windows = read_windows(model) if model.read_count("attention.sliding_window") else {}
    if windows is None:
        return None
    own = {"norms_weights": True, "query_norm": QueryNorm.HEADS}
    return {**own, **windows, "scales_weights": _scales_weights(model)}


def read_exaone(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows of EXAONE, outside of which nothing is rotated."""
    windows = read_windows(model)
    if windows is None:
        return None
    unrotated = frozenset(n for n, is_sliding in enumerate(windows["sliding"]) if not is_sliding)
    return {
        **read_routing(model, tensors),
        **windows,
        "query_norm": QueryNorm.HEADS,
        "style": LayerStyle(unrotated=unrotated),
    }


def read_cohere(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows and the parallel layers of Cohere 2."""
    windows = read_windows(model, is_full_first=True)
    if windows is None:
        return None
    num_dense = model.read_count("leading_dense_block_count") or 0
    unrotated = frozenset(
        number
        for number, is_sliding in enumerate(windows["sliding"])
        if not is_sliding and number >= num_dense
    )
    style = LayerStyle(
        has_layer_norms=not model.read("attention.layer_norm_rms_epsilon"),
        is_parallel=True,
        halves_shared=True,
        selects_late=True,
        scales_logits=bool(model.read("logit_scale")),
        unrotated=unrotated,
    )
    return {**read_routing(model, tensors), **windows, "style": style}


def read_afmoe(model: GgufModel, tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows, gates and norms of AFMoE."""
    windows = read_windows(model)
    if windows is None:
        return None
    style = LayerStyle(
        gates_attention=True,
        has_post_norms=True,
        scales_embedding=True,
        unrotated=_list_every(_PERIOD, len(windows["sliding"])),
    )
    own = {**read_routing(model, tensors), **windows}
    return {**own, "query_norm": QueryNorm.HEADS, "style": style}


def read_smallthinker(model: GgufModel, _tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows of SmallThinker, which routes before attention."""
    has_windows = bool(model.read_count("attention.sliding_window"))
    windows = read_windows(model, is_full_first=True, window=_SMALLTHINKER_WINDOW)
    if windows is None and has_windows:
        return None
    windows = windows or {}
    unrotated = frozenset(range(0, len(windows.get("sliding", ())), _PERIOD))
    style = LayerStyle(routes_early=True, unrotated=unrotated)
    own = {"norms_weights": True, "scales_weights": _scales_weights(model), "style": style}
    return {**own, **windows}


def read_llama4(model: GgufModel, _tensors: Tensors) -> dict[str, Any] | None:
    """Return the windows of Llama 4, and which layers are rotated."""
    num_layers, step = count_layers(model), model.read_count("interleave_moe_layer_step")
    has_windows = model.read("attention.sliding_window") != 0
    if not num_layers or not step:
        return None
    windows: dict[str, Any] = {}
    unrotated = frozenset({num_layers - 1})
    if has_windows:
        pattern = model.read("attention.sliding_window_pattern")
        sliding = tuple(number % _PERIOD != _PERIOD - 1 for number in range(num_layers))
        if pattern is not None:
            return None
        windows = {"window": _LLAMA4_WINDOW, "sliding": sliding}
        unrotated = _list_every(_PERIOD, num_layers)
    style = LayerStyle(
        has_plain_norm=model.read_count("expert_count") != 128,
        unrotated=unrotated,
        is_tempered=True,
        weighs_inputs=True,
        moe_step=step,
    )
    return {"scales_weights": _scales_weights(model), **windows, "style": style}


def _list_every(period: int, num_layers: int) -> frozenset[int]:
    """Return the last layer of each period."""
    return frozenset(range(period - 1, num_layers, period))
