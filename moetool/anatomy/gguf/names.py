"""The component, layer and stack of a tensor of a GGUF file, by its name.

Names are llama.cpp's (src/llama-arch.cpp), which are the same for all families: `blk.N.ffn_up_exps`
holds one matrix of all experts of a layer. Only words count here, so the result is independent of
what `placement` reads off the modules of a skeleton.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from moetool.anatomy.components import Component

_BLOCK = re.compile(r"(?:(enc|dec)\.)?blk\.(\d{1,6})\.(.+)")
# Until 2024, each expert was a tensor.
_NUMBERED_EXPERT = re.compile(r"^ffn_(gate|up|down)\.(\d+)\.")
_STACKED_EXPERTS = re.compile(r"^ffn_(gate|up|down|gate_up)_exps\.")
_CHUNK_EXPERTS = re.compile(r"^ffn_(gate|up|down)_chexps\.")
_SCALE = re.compile(r"\.(input_)?scale$")
_ROPE = re.compile(r"(^|\.)(rope_freqs|rope_factors_(long|short)|attn_rot_embd)\.")
_SELECTION_BIAS = re.compile(r"^exp_probs_b(_vl)?(\.|$)")
_MTP = re.compile(r"(^|\.)nextn\.")
_TABLE = re.compile(r"(^|\.)(ffn_gate_tid2eid|masked_embd_ordering|d2t)(\.|$)")

# Rules for tensors outside layers. The first that matches decides.
_OUTSIDE = (
    (Component.AUDIO, re.compile(r"^(a|mm\.a)\.")),
    (Component.VISION, re.compile(r"^(v|mm|resampler|model)\.")),
    (Component.NORM, re.compile(r"norm\.")),
    (Component.EMBEDDING, re.compile(r"^(token_embd|token_types|per_layer_token_embd)\.")),
    (Component.LM_HEAD, re.compile(r"^(output|cls(\.output)?)\.")),
    (
        Component.OTHER,
        re.compile(r"^(position_embd|output_\w+|per_layer_\w+|altup_\w+|hrm|dense_\d|fc)\."),
    ),
)
# Rules for tensors within layers, by the words after the layer's number.
_INSIDE = (
    (Component.ROUTED_EXPERTS, re.compile(r"^ffn_\w+_(ch)?exps\.|^ffn_(gate|up|down)\.\d+\.")),
    (Component.SHARED_EXPERTS, re.compile(r"^ffn_\w+_shexp\.")),
    (Component.ROUTER, re.compile(r"^(ffn_gate_inp|exp_probs_b(_vl)?|ffn_gate_tid2eid)(\.|$)")),
    (Component.VISION, re.compile(r"^vis_")),
    (Component.NORM, re.compile(r"^(attn_norm(_2)?|attn_output_norm|cross_attn_norm)\.")),
    (
        Component.MIXER,
        re.compile(r"^(attn|cross_attn|ssm|time_mix|indexer|shortconv)(_|\.)\w*|_compressor_"),
    ),
    (Component.OTHER, re.compile(r"^(hc|ple|altup|laurel|per_layer)_|_res_score|^post_norm\.")),
    (
        Component.OTHER,
        re.compile(r"^(inp_gate|proj|layer_output_scale)\.|^ffn_(latent|routed)_(up|down)"),
    ),
    (Component.NORM, re.compile(r"norm(_\d+|_exps)?\.")),
    (Component.DENSE_MLP, re.compile(r"^(ffn_\w+|ffn\.act|channel_mix_\w+)\.")),
)


class GgufName(NamedTuple):
    """The facts in a tensor's name.

    Attributes:
        stack: `encoder` in an encoder, else `decoder`.
        layer: None outside layers.
        component: What it belongs to; None if no rule matches.
        expert: The number of its one expert; None for all others.
        is_stack: Whether it holds the matrices, or the biases, of all experts of a layer.
        is_chunk: Whether these experts are shared by groups of others.
        is_scale: Whether it scales quantized weights.
        is_rope: Whether it holds factors of rotary positions.
        is_selection: Whether it is a bias that only chooses experts.
        is_mtp: Whether it is of a layer that predicts further tokens.
        is_table: Whether it is a table of ids.
    """

    stack: str
    layer: int | None
    component: Component | None
    expert: int | None
    is_stack: bool
    is_chunk: bool
    is_scale: bool
    is_rope: bool
    is_selection: bool
    is_mtp: bool
    is_table: bool


def read_name(name: str) -> GgufName:
    """Return the facts in a tensor's name."""
    found = _BLOCK.fullmatch(name)
    layer, rest = None, name
    rules: tuple[tuple[Component, re.Pattern[str]], ...] = _OUTSIDE
    if found is not None:
        layer, rest, rules = int(found[2]), found[3], _INSIDE
    numbered = _NUMBERED_EXPERT.search(rest) if found else None
    is_encoder = name.startswith("enc.")
    return GgufName(
        stack="encoder" if is_encoder else "decoder",
        layer=layer,
        component=next((kind for kind, words in rules if words.search(rest)), None),
        expert=int(numbered[2]) if numbered else None,
        is_stack=found is not None and _STACKED_EXPERTS.search(rest) is not None,
        is_chunk=found is not None and _CHUNK_EXPERTS.search(rest) is not None,
        is_scale=_SCALE.search(rest) is not None,
        is_rope=_ROPE.search(name) is not None,
        is_selection=_SELECTION_BIAS.search(rest) is not None,
        is_mtp=_MTP.search(name) is not None,
        is_table=_TABLE.search(rest) is not None,
    )
