"""Names of tensors, split into the weight that they belong to and the part of it.

Formats of quantized weights append words to a weight's name, or replace its last word.
"""

from __future__ import annotations

import re

# Last words of names for parts of a module's only weight. The first of these that is there holds the
# weight.
_WEIGHT_WORDS = ("weight_packed", "qweight", "weight", "W_q", "codes", "compressed")
# No parameter of any model has such a name, regardless of its neighbours.
_SCALE_WORDS = frozenset(
    {
        "SCB",
        "activation_scale",
        "g_idx",
        "input_global_scale",
        "input_scale",
        "input_scale_inv",
        "input_zero_point",
        "k_scale",
        "output_scale",
        "output_zero_point",
        "pre_quant_scale",
        "prob_output_scale",
        "q_scale",
        "qzeros",
        "v_scale",
        "weight_format",
        "weight_g_idx",
        "weight_global_scale",
        "weight_scale",
        "weight_scale_2",
        "weight_scale_inv",
        "weight_scales",
        "weight_shape",
        "weight_zero_point",
        # TensorRT-LLM's.
        "activation_scaling_factor",
        "kv_cache_rcp_scaling_factor",
        "kv_cache_scaling_factor",
        "per_channel_scale",
        "prequant_scaling_factor",
        "weights_block_scaling_factor",
        "weights_block_scaling_factor_interleaved",
        "weights_scaling_factor",
    }
)
# These are scales if the weight is quantized, and may be parameters otherwise.
_PERHAPS_SCALE_WORDS = frozenset(
    {
        "act_scale",
        "axis",
        "biases",
        "bitmask",
        "channel_wise",
        "codebooks",
        "compute_dtype",
        "encoded_state_dict",
        "group_size",
        "meta",
        "nbits",
        "offload_meta",
        "optimize",
        "packing",
        "qbiases",
        "quant_scale",
        "quant_zero",
        "round_zero",
        "row_offsets",
        "scale",
        "scale_inv",
        "scale_packed",
        "scales",
        "shape",
        "stores_quant_config",
        "unpack_view_dtype",
        "view_as_float",
        "zero",
        "zero_point",
        "zeros",
    }
)
_WORDS = frozenset(_WEIGHT_WORDS) | _SCALE_WORDS | _PERHAPS_SCALE_WORDS

# Endings of names in modules with several weights, such as those of all experts.
_ENDINGS = (
    "_weight_scale_inv",
    "_weight_scale_2",
    "_weight_scale",
    "_input_scale",
    "_activation_scale",
    "_scale_inv",
    "_zero_point",
    "_scales",
    "_scale",
    "_blocks",
    "_packed",
    "_amax",
)
# Words that torchao appends to a weight's name after an underscore.
_FLATTENED = ("_qdata", "_scale", "_zero_point")
_SURE_ENDINGS = ("scale_inv", "weight_scale_inv", "weight_scale_2", "weight_scale", "input_scale")
WEIGHT_PARTS = (*_WEIGHT_WORDS, "_qdata", "_data._data", "_data", "blocks", "packed", "")
# Words that bitsandbytes appends to the name of a 4-bit weight.
_OF_4_BITS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
# Scales that moetool keeps next to the stack of one matrix of each expert in 4 bits.
_OF_STACKS = re.compile(r"(.*experts\.(?:\w*proj|\w+\.[vw]\d))_(nested_absmax|absmax|offset)")
# Parts that are scales, regardless of their neighbours.
SCALE_PARTS = _SCALE_WORDS | frozenset(_SURE_ENDINGS + _OF_4_BITS)


def split_name(name: str) -> tuple[str, str]:
    """Return the part of a name that the tensors of a weight share, and the part that differs."""
    if ".weight." in name:
        # bitsandbytes and quanto append to the weight's own name.
        stem, _, part = name.partition(".weight.")
        return stem, part
    if name.endswith(("_absmax", "_offset")) and (found := _OF_STACKS.fullmatch(name)):
        return found[1], found[2]
    module, _, word = name.rpartition(".")
    if word in _WORDS:
        return module, word
    if word.startswith("_") and word.endswith(_FLATTENED):
        # torchao flattens `weight` to `_weight_qdata` and `_weight_scale`.
        base, _, part = word[1:].rpartition("_zero_point" if "_zero" in word else "_")
        return f"{module}.{base}", "_" + (part or "zero_point")
    if word.endswith(_ENDINGS):
        ending = next(ending for ending in _ENDINGS if word.endswith(ending))
        return name.removesuffix(ending), ending[1:]
    return name, ""
