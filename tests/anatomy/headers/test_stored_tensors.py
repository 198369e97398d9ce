"""Packed weights are counted in every published layout, or reported as unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from moetool.anatomy.headers.stored_tensors import Role, read_stored
from moetool.anatomy.headers.table import count_headers
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Layout, Tensors, make_headers

# No power of two, so that a factor off does not hit another number by chance.
OUTPUTS, INPUTS = 192, 384
LAYER = "model.layers.0.self_attn.q_proj"


def state(**quantization: Any) -> dict[str, object]:
    return {"quantization_config": quantization}


def state_groups(*groups: Mapping[str, Any], form: str = "pack-quantized") -> dict[str, object]:
    return state(
        quant_method="compressed-tensors",
        format=form,
        config_groups={f"group_{n}": {"weights": weights} for n, weights in enumerate(groups)},
    )


def count(tensors: Tensors, config: Mapping[str, object]) -> int | None:
    """Return the parameters that tensors stand for; None if those of any are unknown."""
    stored = read_stored(make_headers(tensors).tensors, config)
    numbers = [tensor.num_params for tensor in stored]
    assert all(tensor.num_params == 0 for tensor in stored if tensor.role is not Role.PARAMETER)
    return None if None in numbers else sum(number or 0 for number in numbers)


INT4_GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}

FORMATS: dict[str, tuple[Layout, dict[str, object]]] = {
    "plain": (layouts.plain, {}),
    "fp8 in blocks": (layouts.fp8_blocks, state(quant_method="fp8", weight_block_size=[128, 128])),
    "fp8 per tensor": (layouts.fp8_per_tensor, state(quant_method="modelopt", quant_algo="FP8")),
    "fp8 per channel": (layouts.fp8_per_channel, state_groups({"num_bits": 8, "type": "float"})),
    "fp4 in int8": (layouts.fp4_in_int8, state(quant_method="fp8", weight_block_size=[128, 128])),
    "mxfp8": (layouts.mxfp8, state(quant_method="mxfp8")),
    "mxfp4 packed": (layouts.mxfp4_packed, state_groups({"num_bits": 4, "type": "float"})),
    "mxfp6 packed": (layouts.mxfp6_packed, state_groups({"num_bits": 6, "type": "float"})),
    "nvfp4 of modelopt": (layouts.nvfp4_modelopt, state(quant_method="modelopt")),
    "int4 of modelopt": (
        layouts.int4_modelopt,
        state(quant_method="modelopt", quant_algo="W4A16_AWQ", group_size=128),
    ),
    "nvfp4 packed": (layouts.nvfp4_packed, state_groups({"num_bits": 4, "type": "float"})),
    "int8 per channel": (layouts.int8_per_channel, state_groups({"num_bits": 8, "type": "int"})),
    "int4 in groups": (layouts.pack_quantized(4, 32), state_groups(INT4_GROUPS)),
    "int4 per channel": (
        layouts.pack_quantized(4, None),
        state_groups({"num_bits": 4, "type": "int", "group_size": None}),
    ),
    "int8 in words": (
        layouts.pack_quantized(8, None),
        state_groups({"num_bits": 8, "type": "int", "group_size": None}),
    ),
    "int3 in groups": (
        layouts.pack_quantized(3, 128),
        state_groups({"num_bits": 3, "type": "int", "group_size": 128}),
    ),
    "mixed int4 and int8": (
        layouts.pack_quantized(8, 64),
        state_groups(INT4_GROUPS, {"num_bits": 8, "type": "int", "group_size": 64}),
    ),
    **{
        f"gptq of {bits} bits": (
            layouts.gptq(bits, 128),
            state(quant_method="gptq", bits=bits, group_size=128),
        )
        for bits in (2, 3, 4, 8)
    },
    **{
        f"gptq of {bits} bits without order": (
            layouts.gptq(bits, 64, with_order=False),
            state(quant_method="gptq", bits=bits, group_size=64),
        )
        for bits in (2, 3, 4, 8)
    },
    "gptq of other bits in some layers": (
        layouts.gptq(8, 128),
        state(quant_method="gptq", bits=4, group_size=128, dynamic={"q_proj": {"bits": 8}}),
    ),
    "awq": (layouts.awq, state(quant_method="awq", bits=4, group_size=64)),
    "awq that states no bits": (layouts.awq, state(quant_method="awq", w_bit=4)),
    **{
        f"mlx of {bits} bits": (
            layouts.mlx(bits),
            {"quantization": {"bits": bits, "group_size": 64}},
        )
        for bits in (2, 3, 4, 6, 8)
    },
    "mlx of other bits in some layers": (
        layouts.mlx(8),
        {"quantization": {"bits": 4, "group_size": 64, LAYER: {"bits": 8, "group_size": 64}}},
    ),
    "aqlm": (layouts.aqlm, state(quant_method="aqlm", in_group_size=8, num_codebooks=2)),
    "bitnet": (layouts.bitnet, state(quant_method="bitnet")),
    "eetq": (layouts.eetq, state(quant_method="eetq", weights="int8")),
    "torchao's int8": (layouts.torchao_int8, state(quant_method="torchao")),
    "torchao's float8": (layouts.torchao_float8, state(quant_method="torchao")),
    "quanto's int2": (layouts.quanto(2), state(quant_method="quanto", weights="int2")),
    "quanto's int4": (layouts.quanto(4), state(quant_method="quanto", weights="int4")),
    "quanto's int8": (layouts.quanto(8), state(quant_method="quanto", weights="int8")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_layer_counts_as_the_weights_it_stands_for(name: str) -> None:
    lay_out, config = FORMATS[name]
    tensors = {
        **lay_out(LAYER, OUTPUTS, INPUTS),
        f"{LAYER}.bias": ("BF16", [OUTPUTS]),
        "model.norm.weight": ("BF16", [INPUTS]),
    }

    assert count(tensors, config) == OUTPUTS * INPUTS + OUTPUTS + INPUTS


@pytest.mark.parametrize("name", FORMATS)
def test_scales_without_their_weights_are_no_parameters(name: str) -> None:
    """As if one of several shards were missing."""
    lay_out, config = FORMATS[name]
    held = ("weight", "weight_packed", "qweight", "codes", "_weight_qdata", "_data")
    tensors = {
        key: tensor
        for key, tensor in lay_out(LAYER, OUTPUTS, INPUTS).items()
        if key.rpartition(".")[2] not in held
    }
    ambiguous = ("scales", "biases", "codebooks", "_weight_scale", "_scale", "_shift")
    tensors = {key: kept for key, kept in tensors.items() if not key.endswith(ambiguous)}

    assert count(tensors, config) == 0


FUSED = {
    "fp8 in blocks": {
        "{}": ("F8_E4M3", [8, 256, 128]),
        "{}_scale_inv": ("F32", [8, 2, 1]),
    },
    "fp8 with static activations": {
        "{}": ("F8_E4M3", [8, 256, 128]),
        "{}_scale_inv": ("F32", [8, 2, 1]),
        "{}_activation_scale": ("F32", [8]),
    },
    "fp8 per channel": {"{}": ("F8_E4M3", [8, 256, 128]), "{}_scale": ("F32", [8, 1, 256])},
    "fp4 in int8": {"{}": ("I8", [8, 256, 64]), "{}_scale_inv": ("F8_E8M0", [8, 256, 4])},
    "mxfp4 of gpt-oss": {"{}_blocks": ("U8", [8, 256, 4, 16]), "{}_scales": ("U8", [8, 256, 4])},
    "nvfp4": {
        "{}": ("U8", [8, 256, 64]),
        "{}_weight_scale": ("F8_E4M3", [8, 256, 8]),
        "{}_weight_scale_2": ("F32", [1]),
        "{}_input_scale": ("F32", [1]),
    },
}


@pytest.mark.parametrize("name", FUSED)
def test_experts_stacked_in_one_tensor_count_as_the_weights_they_stand_for(name: str) -> None:
    stem = "model.layers.0.mlp.experts.gate_up_proj"
    tensors: Tensors = {key.format(stem): tensor for key, tensor in FUSED[name].items()}
    tensors[f"{stem}_bias"] = ("BF16", [8, 256])

    assert count(tensors, {}) == 8 * 256 * 128 + 8 * 256


UNKNOWN: dict[str, tuple[Tensors, dict[str, object]]] = {
    "hqq": (layouts.hqq(LAYER, OUTPUTS, INPUTS), state(quant_method="hqq")),
    "torchao's int4": (
        {
            f"{LAYER}._weight_qdata": ("I8", [OUTPUTS, INPUTS // 2]),
            f"{LAYER}._weight_scale": ("BF16", [INPUTS // 64, OUTPUTS]),
        },
        state(quant_method="torchao"),
    ),
    "sparse weights": (
        {
            f"{LAYER}.compressed": ("BF16", [OUTPUTS * INPUTS // 2]),
            f"{LAYER}.bitmask": ("U8", [OUTPUTS, INPUTS // 8]),
        },
        {},
    ),
    "marlin": (
        {f"{LAYER}.B": ("I32", [INPUTS // 16, OUTPUTS * 2]), f"{LAYER}.s": ("F16", [6, OUTPUTS])},
        state(quant_method="gptq", bits=4),
    ),
    "marlin with sparsity": (
        {
            f"{LAYER}.weight_packed": ("I32", [INPUTS // 32, OUTPUTS * 2]),
            f"{LAYER}.scale_packed": ("F16", [3, OUTPUTS]),
            f"{LAYER}.meta": ("I16", [INPUTS, OUTPUTS // 16]),
        },
        state_groups(INT4_GROUPS, form="marlin-24"),
    ),
    "vptq": ({f"{LAYER}.indices": ("I32", [1, OUTPUTS, 12])}, state(quant_method="vptq")),
    "exl2": (
        {f"{LAYER}.q_weight": ("I32", [INPUTS // 8, OUTPUTS])},
        state(quant_method="exl2", bits=4.65),
    ),
    "words without a statement of bits": (
        layouts.gptq(4, 128, with_order=False)(LAYER, OUTPUTS, INPUTS),
        state(quant_method="gptq"),
    ),
    "words of other bits than stated": (
        layouts.gptq(8, 128, with_order=False)(LAYER, OUTPUTS, INPUTS),
        state(quant_method="gptq", bits=4, group_size=128),
    ),
    "groups that fit no stated layout": (
        layouts.pack_quantized(8, 64)(LAYER, OUTPUTS, INPUTS),
        state_groups(INT4_GROUPS),
    ),
    "bytes without anything next to them": ({f"{LAYER}.weight": ("U8", [OUTPUTS, INPUTS])}, {}),
    "bytes with a scale, of unstated bits": (
        {
            f"{LAYER}.weight": ("U8", [OUTPUTS, INPUTS // 2]),
            f"{LAYER}.weight_scale": ("F32", [OUTPUTS, 3]),
        },
        {},
    ),
    "bytes with 8-bit scales of groups of no format": (
        {
            f"{LAYER}.weight": ("U8", [OUTPUTS, INPUTS // 2]),
            f"{LAYER}.weight_scale": ("F8_E4M3", [OUTPUTS, INPUTS // 32]),
        },
        {},
    ),
    "mlx of other bits than stated": (
        layouts.mlx(8)(LAYER, OUTPUTS, INPUTS),
        {"quantization": {"bits": 4, "group_size": 64}},
    ),
    "4-bit floats with scales of float32": (
        {
            f"{LAYER}.weight": ("I8", [OUTPUTS, INPUTS // 2]),
            f"{LAYER}.scale": ("F32", [OUTPUTS, INPUTS // 32]),
        },
        {},
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_weights_packed_in_an_unknown_way_make_the_total_unknown(name: str) -> None:
    tensors, config = UNKNOWN[name]

    assert count(tensors, config) is None
    unknown = count_headers(make_headers(tensors), config).unknown
    assert unknown is not None
    assert LAYER in unknown


@pytest.mark.parametrize("inputs", [372, 380, 383])
def test_padded_words_count_by_their_groups(inputs: int) -> None:
    """`weight_shape` is data, which headers do not show."""
    tensors = layouts.pack_quantized(4, inputs)(LAYER, OUTPUTS, inputs)
    config = state_groups({**INT4_GROUPS, "group_size": inputs})

    assert count(tensors, config) == OUTPUTS * inputs


def test_stacked_experts_in_words_count_all_experts() -> None:
    tensors: Tensors = {
        f"{LAYER}.qweight": ("I32", [8, INPUTS // 8, OUTPUTS]),
        f"{LAYER}.scales": ("F16", [8, INPUTS // 128, OUTPUTS]),
        f"{LAYER}.g_idx": ("I32", [8, INPUTS]),
    }
    config = state(quant_method="gptq", bits=4, group_size=128)

    assert count(tensors, config) == 8 * OUTPUTS * INPUTS
    del tensors[f"{LAYER}.g_idx"]
    assert count(tensors, config) == 8 * OUTPUTS * INPUTS


def test_words_that_another_size_of_the_model_would_fill_too_are_unknown() -> None:
    """One scale for each row does not show whether the last word of a row is padded."""
    config = state_groups({"num_bits": 4, "type": "int"})
    tensors = layouts.pack_quantized(4, None)(LAYER, OUTPUTS, INPUTS - 3)

    assert count(tensors, config) == OUTPUTS * INPUTS
    tensors["model.norm.weight"] = ("BF16", [INPUTS - 3])
    assert count(tensors, config) is None
    tensors["model.layers.0.input_layernorm.weight"] = ("BF16", [INPUTS])
    assert count(tensors, config) == OUTPUTS * INPUTS + 2 * INPUTS - 3


STATE: Tensors = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [32]),
    "final_logits_bias": ("F32", [1, 128]),
    "vision.embeddings.position_ids": ("I64", [1, 577]),
    "vision.layers.0.attn.relative_position_index": ("I64", [49, 49]),
    "model.layers.0.ffn.gate.tid2eid": ("I64", [512, 6]),
    "transformer.h.0.attn.bias": ("U8", [1, 1, 64, 64]),
    "visual.bn.num_batches_tracked": ("I64", []),
    "visual.bn.running_mean": ("F32", [64]),
}


def test_tables_and_states_are_neither_parameters_nor_packed_weights() -> None:
    stored = read_stored(make_headers(STATE).tensors, {})

    assert {tensor.role for tensor in stored} == {Role.BUFFER}


def test_scales_that_are_trained_are_parameters() -> None:
    """As Gemma 4's routers, Inkling's gates and Zaya's residuals have them."""
    tensors: Tensors = {
        "model.layers.0.router.scale": ("BF16", [64]),
        "model.layers.0.router.proj.weight": ("BF16", [8, 64]),
        "model.layers.0.mlp.gate.weight": ("BF16", [8, 64]),
        "model.layers.0.mlp.gate.global_scale": ("BF16", [1]),
        "model.layers.0.residual_scale.hidden_states_scale": ("BF16", [64]),
    }

    assert count(tensors, {}) == 64 + 8 * 64 * 2 + 1 + 64


def test_a_bias_that_selects_experts_is_a_parameter_where_the_family_makes_it_one() -> None:
    tensors: Tensors = {"model.layers.1.mlp.expert_bias": ("F32", [8])}

    assert count(tensors, {"model_type": "afmoe"}) == 8
    assert count(tensors, {"model_type": "hy_v3"}) == 0
