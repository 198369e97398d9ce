"""The component, layer and stack of a tensor in a file, by its name.

The names are those that publishers write, which differ from those of transformers' modules: fused
experts are stored one by one, and blocks have other names. Only words count here, so the result is
independent of what `placement` reads off the modules of a skeleton.
"""

from __future__ import annotations

import re

from moetool.anatomy.components import TOWERS, Component, Place

_AUDIO = re.compile(r"audio|speech|sound|(^|\.)(talker|code2wav)\.")
_VISION = re.compile(
    r"vision|visual|image|multi_modal|mm_proj|patch_merge|resampler|view_sep|sam_model|qwen2_model"
    r"|(^|\.)(projector|vit(_\w+)?)\.|^mlp1\."
)

# Rules for tensors outside layers. The first that matches decides.
_OUTSIDE = (
    (
        Component.LM_HEAD,
        re.compile(r"(^|\.)(lm_head|embed_out|unembed|head|output(_layer)?|score)\."),
    ),
    (Component.NORM, re.compile(r"norm|(^|\.)ln_\w+\.")),
    (
        Component.OTHER,
        re.compile(
            r"(^|\.)(wpe|pos\w*|embed_positions)\.|(^|\.)hc_|hyper_connection|_input\.query$"
            # Inkling's queries into the states of earlier layers and passes.
            r"|(^|\.)\w+_quer(y|ies)(\.|$)"
        ),
    ),
    (
        Component.EMBEDDING,
        re.compile(r"(^|\.)(\w*embed(ding)?s?|embed_tokens\w*|wte|shared|embed_in)\."),
    ),
    (Component.DENSE_MLP, re.compile(r"\.(gate|up|down)_proj\.")),
)

# A tensor of experts, by the words after the layer's number: a set of experts, or one stack of all.
_EXPERTS = re.compile(
    r"(^|\.)experts\.(?!router\.|bias$|e_score)"
    # MLX's names for a stack of all experts.
    r"|(^|\.)switch_(mlp|glu)\."
    r"|(^|\.)(block_sparse_moe|mlp|self_attention)\.(input|output)_linear\."
    r"|(^|\.)moe\.(gate|up|down)_proj\.|(^|\.)(up|down)_embed\."
)

# Rules for tensors within layers, by the words after the layer's number. The first that matches
# decides. A layer without experts has neither routers nor shared experts.
_IN_ROUTED_LAYERS = (
    (Component.ROUTED_EXPERTS, _EXPERTS),
    (Component.OTHER, re.compile(r"experts\.bias$|^mlp\.bias$|_latent_proj\.|_expert_proj\.")),
    (Component.SHARED_EXPERTS, re.compile(r"(^|\.)shared?_(experts?|mlp)\w*\.")),
    (
        Component.ROUTER,
        re.compile(
            r"(^|\.)(?<!residual_gate\.)(gate|router|router_gate|wg|moe_statics)\."
            r"|(^|\.)(router|expert|correction)_bias$|e_score_correction_bias$"
        ),
    ),
)
_IN_LAYERS = (
    # Gates for the output of an earlier pass through the same layers.
    (Component.OTHER, re.compile(r"^controllers\.")),
    (Component.DENSE_MLP, re.compile(r"^mixer\.(gate|up|down)_proj\.")),
    (
        Component.MIXER,
        re.compile(
            r"(^|\.)\w*(attn|attention|Attention|mamba|conv|convolution|ssm|indexer|mixer)\."
        ),
    ),
    (Component.NORM, re.compile(r"(^|\.)\w*norm(_?\d+)?\.|(^|\.)ln_\w+\.")),
    (
        Component.DENSE_MLP,
        re.compile(r"(^|\.)\w*(mlps?|ffn?|feed_forward|DenseReluDense|moe)\d*\."),
    ),
    (Component.DENSE_MLP, re.compile(r"^(fc\d|(gate|up|down)_proj|shared_mlp\.)")),
    # BERT's.
    (Component.DENSE_MLP, re.compile(r"^(intermediate|output)\.dense\.")),
    (
        Component.OTHER,
        re.compile(r"_hc\.|^hc_|hyper_connection|^\w+_input\.query$|altup|laurel|per_layer_"),
    ),
)


def holds_experts(name: str) -> bool:
    """Return whether a tensor belongs to a layer's routed experts."""
    number, rest = _split(name)
    return number is not None and _EXPERTS.search(rest) is not None


def name_layer(name: str) -> tuple[str, int | None]:
    """Return the stack and the layer of a tensor; no layer outside layers."""
    stack = "encoder" if re.search(r"(^|\.)encoder\.", name) else "decoder"
    return stack, _split(name)[0]


def place_tensor(name: str, *, is_in_routed_layer: bool) -> Place:
    """Return the place of a tensor.

    Args:
        name: The tensor's name in the file.
        is_in_routed_layer: Whether other tensors of its layer are experts.
    """
    component = _find_tower(name)
    if component is not None:
        return Place(component.value, None, component)
    stack, layer = name_layer(name)
    component = _find_component(name, is_in_routed_layer=is_in_routed_layer) or Component.OTHER
    assert component not in TOWERS
    return Place(stack, layer, component)


def is_understood(name: str, *, is_in_routed_layer: bool) -> bool:
    """Return whether a rule matches a tensor's name, if only one for other components."""
    return (
        _find_tower(name) is not None
        or _find_component(name, is_in_routed_layer=is_in_routed_layer) is not None
    )


def _find_tower(name: str) -> Component | None:
    for component, words in ((Component.AUDIO, _AUDIO), (Component.VISION, _VISION)):
        if words.search(name) and not holds_experts(name.partition(".layers.")[2]):
            return component
    return None


def _find_component(name: str, *, is_in_routed_layer: bool) -> Component | None:
    """Return the component of the first rule that matches; None if none does."""
    number, text = _split(name)
    rules: tuple[tuple[Component, re.Pattern[str]], ...] = _OUTSIDE
    if number is not None:
        rules = (*_IN_ROUTED_LAYERS, *_IN_LAYERS) if is_in_routed_layer else _IN_LAYERS
    return next((kind for kind, words in rules if words.search(text)), None)


def _split(name: str) -> tuple[int | None, str]:
    """Return the number of a tensor's layer and the rest of the name after it."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (None, name)
