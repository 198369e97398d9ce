"""Every Mixture-of-Experts family that transformers 5 can build."""

from __future__ import annotations

from tests.families.tiny.family import Family, make_family
from tests.families.tiny.field_groups import (
    DOTS3_NOTE,
    GEMMA4,
    INKLING,
    LINEAR,
    LLAMA4,
    MINIMAX_M3,
    MULTI_HEAD,
    NEMOTRON_H,
    NO_TOKEN,
    SLIDING,
    mrope,
)
from tests.families.tiny.sizes import TOP_K

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        make_family("afmoe"),
        make_family("aria", "AriaForConditionalGeneration", image_token_index=NO_TOKEN),
        make_family("aria_text"),
        make_family("axk1", **MULTI_HEAD),
        make_family("axk2", **MULTI_HEAD),
        make_family("bailing_hybrid", **MULTI_HEAD, **LINEAR),
        make_family("beam"),
        make_family("cohere2_moe"),
        make_family(
            "dbrx",
            n_heads=4,
            n_layers=2,
            max_seq_len=128,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            ffn_config={"ffn_hidden_size": 40, "moe_top_k": TOP_K},
        ),
        make_family("deepseek_ocr2", "DeepseekOcr2ForConditionalGeneration"),
        make_family(
            "deepseek_ocr2_text", "DeepseekOcr2TextModel", topk_method="group_limited_greedy"
        ),
        make_family("deepseek_v2", topk_method="group_limited_greedy", **MULTI_HEAD),
        make_family("deepseek_v3", **MULTI_HEAD),
        make_family("deepseek_v32", **MULTI_HEAD),
        make_family(
            "deepseek_v4",
            mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
            intermediate_size=40,
            o_groups=2,
            o_lora_rank=16,
            hc_mult=2,
        ),
        make_family(
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
        make_family("dots1"),
        make_family(
            "dots3_note",
            "Dots3NoteForConditionalGeneration",
            text_config=DOTS3_NOTE,
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
        make_family("dots3_note_text", "Dots3NoteForCausalLM", **DOTS3_NOTE),
        make_family("ernie4_5_moe"),
        make_family(
            "ernie4_5_vl_moe",
            "Ernie4_5_VLMoeForConditionalGeneration",
            # Two sets of experts: for text tokens and, less wide, for image tokens.
            text_config={"moe_intermediate_size": [40, 24], "rope_parameters": mrope(2, 2, 4)},
        ),
        make_family("exaone_moe"),
        make_family("flex_olmo"),
        make_family("flint"),
        make_family(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            text_config={**GEMMA4, "vocab_size_per_layer_input": 256},
            audio_config={"output_proj_dims": 64, "subsampling_conv_channels": [16, 8]},
        ),
        make_family("gemma4_text", "Gemma4ForCausalLM", **GEMMA4),
        make_family("glm4_moe"),
        make_family("glm4_moe_lite", **MULTI_HEAD),
        make_family(
            "glm4v_moe",
            "Glm4vMoeForConditionalGeneration",
            text_config={"rope_parameters": mrope(2, 1, 1, partial_rotary_factor=0.5)},
        ),
        make_family(
            "glm5_next",
            "Glm5NextForConditionalGeneration",
            text_config={**MULTI_HEAD, "index_topk": 32, "qk_rope_head_dim": 0},
            vision_config={"projection_intermediate_size": 48},
        ),
        make_family("glm_moe_dsa", **MULTI_HEAD),
        make_family("gpt_oss"),
        make_family("granitemoe"),
        make_family("granitemoe_swa"),
        make_family(
            "granitemoehybrid",
            **LINEAR,
            mamba_n_heads=8,
            mamba_d_head=16,
            mamba_d_state=16,
            mamba_chunk_size=8,
        ),
        make_family("granitemoeshared"),
        make_family("hunyuan_v1_moe"),
        make_family("hy_v3"),
        make_family("hy_v4", **MULTI_HEAD),
        make_family(
            "hy_v4_vl",
            "HYV4VLForConditionalGeneration",
            text_config={**MULTI_HEAD, "rope_parameters": mrope(2, 1, 1)},
        ),
        make_family(
            "inkling2_loop_text",
            "Inkling2LoopForCausalLM",
            **INKLING,
            # The two layers in the middle run twice.
            n_layers_per_attn_res_block=1,
            loop_layer_index_start=1,
            loop_layer_index_end=3,
            loop_num_passes=2,
            loop_gate_rank=8,
        ),
        make_family("inkling2_text", "Inkling2ForCausalLM", **INKLING),
        make_family("inkling_text", "InklingForCausalLM", **INKLING, n_shared_experts=2),
        make_family(
            "jamba",
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        make_family("jetmoe", kv_channels=16),
        make_family("kimi_k25", "Kimi_K25ForConditionalGeneration", text_config=MULTI_HEAD),
        make_family("kimi_linear", **MULTI_HEAD, **LINEAR),
        make_family("kolibri1", **SLIDING),
        make_family("laguna", **SLIDING),
        make_family(
            "lara_mini",
            layer_types=[
                "linear_attention",
                "sliding_attention",
                "linear_attention",
                "full_attention",
            ],
        ),
        make_family("lfm2_moe", layer_types=["conv", "full_attention"] * 2),
        Family(
            "llama4",
            "Llama4ForConditionalGeneration",
            overrides={
                "text_config": LLAMA4,
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
        make_family("llama4_text", "Llama4ForCausalLM", **LLAMA4),
        make_family(
            "longcat_flash",
            **MULTI_HEAD,
            num_layers=2,
            head_dim=8,
            ffn_hidden_size=96,
            expert_ffn_hidden_size=40,
            zero_expert_num=4,
            router_bias=True,
        ),
        make_family("mellum", **SLIDING),
        make_family("mimo_v2_flash"),
        make_family("minimax"),
        make_family("minimax_m2"),
        make_family(
            "minimax_m3_vl",
            "MiniMaxM3SparseForConditionalGeneration",
            projector_hidden_size=64,
            text_config=MINIMAX_M3,
        ),
        make_family("minimax_m3_vl_text", "MiniMaxM3VLForCausalLM", **MINIMAX_M3),
        make_family("mistral4", "Mistral4ForCausalLM", **MULTI_HEAD),
        make_family(
            "mistral_large4",
            "MistralLarge4ForConditionalGeneration",
            image_token_index=NO_TOKEN,
            text_config=MULTI_HEAD,
        ),
        make_family("mixtral"),
        make_family(
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
        make_family("nemotron_h", **NEMOTRON_H, moe_latent_size=32),
        make_family(
            "nemotron_h_omni",
            "NemotronH_Omni_Reasoning_V3",
            projector_hidden_size=64,
            vision_hidden_size=32,
            text_config=NEMOTRON_H,
            vision_config={"video_temporal_patch_size": 2, "max_img_size": 56},
        ),
        make_family(
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
        make_family("olmoe"),
        make_family("openai_privacy_filter", "OpenAIPrivacyFilterForTokenClassification"),
        make_family("phimoe"),
        make_family("qwen2_moe"),
        make_family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
        make_family("qwen3_moe"),
        make_family("qwen3_next"),
        make_family(
            "qwen3_omni_moe_talker_text",
            "Qwen3OmniMoeTalkerModel",
            # Read by the model, but no field of the configuration's.
            shared_expert_intermediate_size=48,
        ),
        make_family(
            "qwen3_omni_moe_thinker",
            "Qwen3OmniMoeThinkerForConditionalGeneration",
            # Only the configuration of the whole model has a default for these.
            vision_start_token_id=151652,
            vision_end_token_id=151653,
            audio_config={"output_dim": 64},
        ),
        make_family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
        make_family(
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
        make_family("sarvam_mla", **MULTI_HEAD),
        make_family("sarvam_moe"),
        make_family("solar_open"),
        make_family("step3p7", "Step3p7ForConditionalGeneration", text_config=SLIDING),
        make_family(
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
        make_family("unlimited_ocr", "UnlimitedOcrForConditionalGeneration"),
        make_family(
            "unlimited_ocr_text", "UnlimitedOcrTextModel", topk_method="group_limited_greedy"
        ),
        make_family("zaya", num_hidden_layers=2, num_experts_per_tok=1, router_hidden_size=32),
    )
}

# These have experts, but the caller says which one each example goes to.
NOT_ROUTED: dict[str, Family] = {
    "vitpose_backbone": make_family(
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
