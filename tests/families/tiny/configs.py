"""Tiny configurations of every Mixture-of-Experts family that transformers 5 can build.

A configuration class is filled with whatever fields it shares with a common table of small values,
and so are the configurations inside it. What a family needs beyond that is in `FAMILIES`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCAB_SIZE = 256
HIDDEN_SIZE = 64
NUM_EXPERTS = 8
TOP_K = 3

_Fields = dict[str, Any]

_TEXT: _Fields = {
    "vocab_size": VOCAB_SIZE,
    "unpadded_vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
    # Width and depth.
    "hidden_size": HIDDEN_SIZE,
    "d_model": HIDDEN_SIZE,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    # Attention.
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    # Routed experts.
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_experts_per_token": TOP_K,
    "top_k_experts": TOP_K,
    "moe_k": TOP_K,
    "moe_topk": TOP_K,
    "moe_intermediate_size": 40,
    "moe_hidden_size": 48,
    # A token chooses among the experts of one of two groups.
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    # Shared experts.
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    # The first layer is dense.
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "mlp_only_layers": [0],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}

# Vision and audio towers are never run: they only have to exist.
_TOWER: _Fields = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "embed_dim": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "head_dim": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "image_size": 56,
    "patch_size": 14,
    "position_embedding_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0],
    "downsample_hidden_size": 16,
    "output_channels": 16,
    "downsample_channels": [16, 32],
    "mlp_dim": 48,
}


@dataclass(frozen=True)
class Family:
    """A model type whose layers route tokens to experts.

    Args:
        model_type: The name of the configuration, also of the family.
        model_class: Class of the model, or None for what `AutoModelForCausalLM` makes of it.
        overrides: What the configuration needs beyond the common table; dicts are for the
            configurations inside it.
        runs_since: The first transformers whose model runs, if it is not the first that has it.
        broken_in: By version of transformers, such as "5.24", what its own code raises there when
            the model is called.
    """

    model_type: str
    model_class: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    runs_since: str | None = None
    broken_in: Mapping[str, str] = field(default_factory=dict)


# An out-of-vocabulary id for the placeholders whose default is a small number.
_NO_TOKEN = 1000
_MULTI_HEAD: _Fields = {"num_key_value_heads": 4}
_LINEAR: _Fields = {"layer_types": ["linear_attention", "full_attention"] * 2}
_SLIDING: _Fields = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_NEMOTRON_H: _Fields = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "chunk_size": 8,
    "n_groups": 2,
    "use_mamba_kernels": False,
}
_LLAMA4: _Fields = {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 96}
_MINIMAX_M3: _Fields = {
    "dense_intermediate_size": 96,
    "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    "index_block_size": 4,
    "index_topk_blocks": 2,
}
_GEMMA4: _Fields = {
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
}
_INKLING: _Fields = {
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 16,
    "rel_extent": 16,
}
_DOTS3_NOTE: _Fields = {
    **_MULTI_HEAD,
    "shared_experts_intermediate_size": 48,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
}


def _mrope(*sections: int, **extra: Any) -> dict[str, Any]:
    """Return rotary positions in three dimensions, as vision-language models have them."""
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": list(sections),
        **extra,
    }


def _family(model_type: str, model_class: str | None = None, **overrides: Any) -> Family:
    return Family(model_type, model_class, overrides)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _family("afmoe"),
        _family("aria", "AriaForConditionalGeneration", image_token_index=_NO_TOKEN),
        _family("aria_text"),
        _family("axk1", **_MULTI_HEAD),
        _family("axk2", **_MULTI_HEAD),
        _family("bailing_hybrid", **_MULTI_HEAD, **_LINEAR),
        _family("beam"),
        _family("cohere2_moe"),
        _family(
            "dbrx",
            n_heads=4,
            n_layers=2,
            max_seq_len=128,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            ffn_config={"ffn_hidden_size": 40, "moe_top_k": TOP_K},
        ),
        _family("deepseek_ocr2", "DeepseekOcr2ForConditionalGeneration"),
        _family("deepseek_ocr2_text", "DeepseekOcr2TextModel", topk_method="group_limited_greedy"),
        _family("deepseek_v2", topk_method="group_limited_greedy", **_MULTI_HEAD),
        _family("deepseek_v3", **_MULTI_HEAD),
        _family("deepseek_v32", **_MULTI_HEAD),
        _family(
            "deepseek_v4",
            mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
            intermediate_size=40,
            o_groups=2,
            o_lora_rank=16,
            hc_mult=2,
        ),
        _family(
            "diffusion_gemma",
            "DiffusionGemmaForBlockDiffusion",
            canvas_length=8,
            text_config={"global_head_dim": 16},
            vision_config={"model_type": "gemma4_vision"},
        ),
        Family(
            "doge",
            # Product keys: the number of experts is a square.
            overrides={"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4},
            # Until 5.22, its layers took for hidden states what its experts return in pairs.
            runs_since="5.23",
        ),
        _family("dots1"),
        _family(
            "dots3_note",
            "Dots3NoteForConditionalGeneration",
            text_config=_DOTS3_NOTE,
            audio_config={"adapter_input_size": 32, "adapter_out_dim": 64},
            # The vision tower has its own experts, a different number in each layer.
            vision_config={
                "num_hidden_layers": 2,
                "mlp_layer_types": ["dense", "sparse"],
                "moe_intermediate_size": 24,
                "per_layer_config": {1: {"num_local_experts": 4}},
                "adapter_in_dim": 32,
                "adapter_out_dim": 64,
            },
        ),
        _family("dots3_note_text", "Dots3NoteForCausalLM", **_DOTS3_NOTE),
        _family("ernie4_5_moe"),
        _family(
            "ernie4_5_vl_moe",
            "Ernie4_5_VLMoeForConditionalGeneration",
            # Two sets of experts: for text tokens and, less wide, for image tokens.
            text_config={"moe_intermediate_size": [40, 24], "rope_parameters": _mrope(2, 2, 4)},
        ),
        _family("exaone_moe"),
        _family("flex_olmo"),
        _family("flint"),
        _family(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            text_config={**_GEMMA4, "vocab_size_per_layer_input": 256},
            audio_config={"output_proj_dims": 64, "subsampling_conv_channels": [16, 8]},
        ),
        _family("gemma4_text", "Gemma4ForCausalLM", **_GEMMA4),
        _family("glm4_moe"),
        _family("glm4_moe_lite", **_MULTI_HEAD),
        _family(
            "glm4v_moe",
            "Glm4vMoeForConditionalGeneration",
            text_config={"rope_parameters": _mrope(2, 1, 1, partial_rotary_factor=0.5)},
        ),
        _family(
            "glm5_next",
            "Glm5NextForConditionalGeneration",
            text_config={**_MULTI_HEAD, "index_topk": 32, "qk_rope_head_dim": 0},
            vision_config={"projection_intermediate_size": 48},
        ),
        _family("glm_moe_dsa", **_MULTI_HEAD),
        _family("gpt_oss"),
        _family("granitemoe"),
        _family("granitemoe_swa"),
        _family(
            "granitemoehybrid",
            **_LINEAR,
            mamba_n_heads=8,
            mamba_d_head=16,
            mamba_d_state=16,
            mamba_chunk_size=8,
        ),
        _family("granitemoeshared"),
        _family("hunyuan_v1_moe"),
        _family("hy_v3"),
        _family("hy_v4", **_MULTI_HEAD),
        _family(
            "hy_v4_vl",
            "HYV4VLForConditionalGeneration",
            text_config={**_MULTI_HEAD, "rope_parameters": _mrope(2, 1, 1)},
        ),
        _family(
            "inkling2_loop_text",
            "Inkling2LoopForCausalLM",
            **_INKLING,
            # The two layers in the middle run twice.
            n_layers_per_attn_res_block=1,
            loop_layer_index_start=1,
            loop_layer_index_end=3,
            loop_num_passes=2,
            loop_gate_rank=8,
        ),
        _family("inkling2_text", "Inkling2ForCausalLM", **_INKLING),
        _family("inkling_text", "InklingForCausalLM", **_INKLING, n_shared_experts=2),
        _family(
            "jamba",
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        _family("jetmoe", kv_channels=16),
        _family("kimi_k25", "Kimi_K25ForConditionalGeneration", text_config=_MULTI_HEAD),
        _family("kimi_linear", **_MULTI_HEAD, **_LINEAR),
        _family("kolibri1", **_SLIDING),
        _family("laguna", **_SLIDING),
        _family(
            "lara_mini",
            layer_types=[
                "linear_attention",
                "sliding_attention",
                "linear_attention",
                "full_attention",
            ],
        ),
        _family("lfm2_moe", layer_types=["conv", "full_attention"] * 2),
        Family(
            "llama4",
            "Llama4ForConditionalGeneration",
            overrides={
                "text_config": _LLAMA4,
                "vision_config": {
                    "vision_output_dim": 32,
                    "projector_input_dim": 32,
                    "projector_output_dim": 32,
                },
            },
            broken_in={
                "5.24": "'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'"
            },
        ),
        _family("llama4_text", "Llama4ForCausalLM", **_LLAMA4),
        _family(
            "longcat_flash",
            **_MULTI_HEAD,
            num_layers=2,
            head_dim=8,
            ffn_hidden_size=96,
            expert_ffn_hidden_size=40,
            zero_expert_num=4,
            router_bias=True,
        ),
        _family("mellum", **_SLIDING),
        _family("mimo_v2_flash"),
        _family("minimax"),
        _family("minimax_m2"),
        _family(
            "minimax_m3_vl",
            "MiniMaxM3SparseForConditionalGeneration",
            projector_hidden_size=64,
            text_config=_MINIMAX_M3,
        ),
        _family("minimax_m3_vl_text", "MiniMaxM3VLForCausalLM", **_MINIMAX_M3),
        _family("mistral4", "Mistral4ForCausalLM", **_MULTI_HEAD),
        _family(
            "mistral_large4",
            "MistralLarge4ForConditionalGeneration",
            image_token_index=_NO_TOKEN,
            text_config=_MULTI_HEAD,
        ),
        _family("mixtral"),
        _family(
            "muse_spark",
            "MuseSparkForConditionalGeneration",
            out_hidden_size=64,
            projector_hidden_size=64,
            # A factor of the router's scores, too, and by default so small that biases decide.
            text_config={"output_multiplier": 1.0},
            audio_config={
                "num_hidden_layers": 2,
                "patch_sizes": (16, 6),
                "hidden_sizes": (16, 32),
                "depths": (1, 1),
            },
        ),
        _family("nemotron_h", **_NEMOTRON_H, moe_latent_size=32),
        _family(
            "nemotron_h_omni",
            "NemotronH_Omni_Reasoning_V3",
            projector_hidden_size=64,
            vision_hidden_size=32,
            text_config=_NEMOTRON_H,
            vision_config={"video_temporal_patch_size": 2, "max_img_size": 56},
        ),
        _family(
            "nllb-moe",
            "NllbMoeForConditionalGeneration",
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=96,
            encoder_sparse_step=2,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=96,
            decoder_sparse_step=2,
        ),
        _family("olmoe"),
        _family("openai_privacy_filter", "OpenAIPrivacyFilterForTokenClassification"),
        _family("phimoe"),
        _family("qwen2_moe"),
        _family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
        _family("qwen3_moe"),
        _family("qwen3_next"),
        _family(
            "qwen3_omni_moe_talker_text",
            "Qwen3OmniMoeTalkerModel",
            # Read by the model, but no field of the configuration's.
            shared_expert_intermediate_size=48,
        ),
        _family(
            "qwen3_omni_moe_thinker",
            "Qwen3OmniMoeThinkerForConditionalGeneration",
            # Only the configuration of the whole model has a default for these.
            vision_start_token_id=151652,
            vision_end_token_id=151653,
            audio_config={"output_dim": 64},
        ),
        _family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
        _family(
            "qwen4_exp_text",
            "Qwen4ExpForCausalLM",
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=16,
            indexer_budget=8,
            indexer_compress_ratio=4,
            hc_lowrank=8,
            ple_embed_dim=16,
            ngram_vocab_size_base=64,
            split_ngram_parts=2,
        ),
        _family("sarvam_mla", **_MULTI_HEAD),
        _family("sarvam_moe"),
        _family("solar_open"),
        _family("step3p7", "Step3p7ForConditionalGeneration", text_config=_SLIDING),
        _family(
            "switch_transformers",
            "SwitchTransformersForConditionalGeneration",
            d_ff=96,
            d_kv=16,
            num_heads=4,
            num_layers=2,
            num_decoder_layers=2,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            # So little that some tokens are dropped.
            expert_capacity=2,
        ),
        _family("unlimited_ocr", "UnlimitedOcrForConditionalGeneration"),
        _family("unlimited_ocr_text", "UnlimitedOcrTextModel", topk_method="group_limited_greedy"),
        _family("zaya", num_hidden_layers=2, num_experts_per_tok=1, router_hidden_size=32),
    )
}

# These have experts, but the caller says which one each example goes to.
NOT_ROUTED: dict[str, Family] = {
    "vitpose_backbone": _family(
        "vitpose_backbone",
        "VitPoseBackbone",
        num_experts=6,
        part_features=8,
        image_size=(56, 56),
        patch_size=(14, 14),
    )
}


def find_family(name: str) -> Family:
    """Return the table's entry of a family, routed or not."""
    return FAMILIES[name] if name in FAMILIES else NOT_ROUTED[name]


def build_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """Return a tiny configuration of a family.

    Args:
        name: The family, one of `FAMILIES` or `NOT_ROUTED`.
        overrides: Fields with another value than the table's; dicts are for the configurations
            inside it, whose other fields keep their values.
    """
    family = find_family(name)
    overrides = _merge(family.overrides, overrides)
    return _fill(CONFIG_MAPPING[family.model_type], overrides, _TEXT)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> _Fields:
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merge(inner, value)
        merged[name] = value
    return merged


def _fill(
    config_class: type[PreTrainedConfig], overrides: Mapping[str, Any], table: Mapping[str, Any]
) -> PreTrainedConfig:
    """Return a configuration with the table's value in every field that the table knows."""
    names = {one.name for one in dataclasses.fields(config_class)}
    shared = {name: value for name, value in table.items() if name in names}
    values: _Fields = copy.deepcopy({**shared, **overrides})
    for name in config_class.sub_configs:
        inner_overrides = values.pop(name, {})
        inner_class = _inner_class(config_class, name, inner_overrides.pop("model_type", None))
        if inner_class is not None:
            is_tower = name.startswith(("vision", "audio"))
            values[name] = _fill(inner_class, inner_overrides, _TOWER if is_tower else table)
    return config_class(**values)


def _inner_class(
    config_class: type[PreTrainedConfig], name: str, model_type: str | None
) -> type[PreTrainedConfig] | None:
    """Return the class of a configuration's field, or None where it is left out by default."""
    if model_type is not None:
        return CONFIG_MAPPING[model_type]
    inner_class: type[Any] = config_class.sub_configs[name]
    if issubclass(inner_class, PreTrainedConfig):
        return inner_class
    # Otherwise it is `AutoConfig`: any family's.
    default = getattr(config_class(), name)
    return None if default is None else type(default)
