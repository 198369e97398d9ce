"""FLOPs per token against closed forms of published geometries, and their documented behaviour."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    JambaConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from moetool.simulation.flops.flops import (
    CantSimulate,
    FlopsPerToken,
    OperationBudget,
    count_flops,
)
from tests.simulation.skeletons import build_family_skeleton, build_skeleton_of

NUM_TOKENS = 2048
# So few that every layer exceeds them.
FEW_OPERATIONS = OperationBudget(per_layer=10, per_token=0)


@pytest.fixture(scope="module")
def mixtral() -> FlopsPerToken:
    config = MixtralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=32768,
    )
    return count_flops(build_skeleton_of(config), num_prompt_tokens=NUM_TOKENS)


def test_mixtral_8x7b_takes_what_its_shapes_say(mixtral: FlopsPerToken) -> None:
    hidden, heads, kv_heads, head_dim, width = 4096, 32, 8, 128, 14336
    projections = hidden * head_dim * (2 * heads + 2 * kv_heads)
    router, experts, head = hidden * 8, 2 * 3 * hidden * width, hidden * 32000

    def layers(num_keys: int) -> int:
        attention = 2 * num_keys * heads * head_dim  # scores, and values weighted by them
        return 32 * (projections + attention + router + experts)

    assert mixtral.num_prompt_tokens == NUM_TOKENS
    assert mixtral.prefill == 2 * (layers(NUM_TOKENS) + head / NUM_TOKENS) == 26_308_899_840
    assert mixtral.decode == 2 * (layers(NUM_TOKENS + 1) + head) == 26_571_440_128
    assert mixtral.experts_prefill == mixtral.experts_decode == 2 * 32 * experts == 22_548_578_304


def test_deepseek_v3_takes_what_its_shapes_say() -> None:
    hidden, heads, nope, rope, value_dim = 7168, 128, 128, 64, 128
    q_rank, kv_rank = 1536, 512
    config = DeepseekV3Config(
        hidden_size=hidden,
        intermediate_size=18432,
        moe_intermediate_size=2048,
        num_hidden_layers=61,
        first_k_dense_replace=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=q_rank,
        kv_lora_rank=kv_rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value_dim,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        vocab_size=129280,
        max_position_embeddings=163840,
    )
    counted = count_flops(build_skeleton_of(config), num_prompt_tokens=NUM_TOKENS)

    queries = hidden * q_rank + q_rank * heads * (nope + rope)
    compressed = hidden * (kv_rank + rope)
    expanded = kv_rank * heads * (nope + value_dim)  # of one cached token
    output = heads * value_dim * hidden
    expert = 3 * hidden * 2048
    sparse = 58 * (hidden * 256 + 9 * expert)
    dense = 3 * 3 * hidden * 18432
    head = hidden * 129280

    def layers(*, num_keys: int, num_expanded: int) -> int:
        attention = num_keys * heads * (nope + rope + value_dim)
        mixer = queries + compressed + num_expanded * expanded + output + attention
        return 61 * mixer + sparse + dense

    in_prefill = layers(num_keys=NUM_TOKENS, num_expanded=1)
    # transformers caches latents, and expands all of them for each new token.
    in_decode = layers(num_keys=NUM_TOKENS + 1, num_expanded=NUM_TOKENS + 1)
    assert counted.prefill == 2 * (in_prefill + head / NUM_TOKENS) == 81_630_842_624
    assert counted.decode == 2 * (in_decode + head) == 4_275_376_373_760
    assert counted.experts_prefill == counted.experts_decode == 2 * 58 * 8 * expert


def test_a_dense_model_of_the_same_total_runs_every_expert(mixtral: FlopsPerToken) -> None:
    num_routed = 32 * 8 * 3 * 4096 * 14336
    dense = mixtral.of_dense_model(num_routed_parameters=num_routed)
    assert dense is not None
    assert dense.experts_prefill == dense.experts_decode == 8 / 2 * 22_548_578_304
    assert mixtral.decode is not None
    assert dense.prefill == mixtral.prefill + 3 * 22_548_578_304
    assert dense.decode == mixtral.decode + 3 * 22_548_578_304
    assert dense.num_prompt_tokens == NUM_TOKENS


def test_a_mixtral_whose_tokens_choose_all_experts_is_that_dense_model() -> None:
    sparse = count_flops(build_family_skeleton("mixtral"), num_prompt_tokens=16)
    full = count_flops(
        build_family_skeleton("mixtral", num_experts_per_tok=8), num_prompt_tokens=16
    )
    num_routed = 4 * 8 * 3 * 64 * 96
    assert sparse.of_dense_model(num_routed_parameters=num_routed) == full


def test_a_dense_model_spends_nothing_in_experts_and_is_its_own_dense_model() -> None:
    counted = count_flops(_tiny_llama(), num_prompt_tokens=16)
    assert (counted.experts_prefill, counted.experts_decode) == (0, 0)
    assert counted.of_dense_model(num_routed_parameters=0) == counted


def test_experts_that_are_rows_of_embeddings_are_not_told_apart() -> None:
    counted = count_flops(build_family_skeleton("doge"), num_prompt_tokens=16)
    assert counted.prefill > 0
    assert (counted.experts_prefill, counted.experts_decode) == (None, None)
    assert counted.of_dense_model(num_routed_parameters=1) is None


def test_a_prompt_is_no_longer_than_the_context() -> None:
    assert count_flops(_tiny_llama(), num_prompt_tokens=1000).num_prompt_tokens == 128


def test_a_model_without_a_cache_does_not_decode() -> None:
    counted = count_flops(build_family_skeleton("openai_privacy_filter"), num_prompt_tokens=16)
    assert counted.decode is None
    assert counted.experts_decode is None
    assert counted.experts_prefill == 2 * 4 * 3 * 3 * 64 * 96
    dense = counted.of_dense_model(num_routed_parameters=100)
    assert dense is not None
    assert (dense.decode, dense.experts_decode) == (None, None)


def test_an_encoder_decoder_is_its_encoder_in_prefill_and_its_decoder_in_decode() -> None:
    config = T5Config(
        vocab_size=256,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
    )
    with torch.device("meta"):
        skeleton = T5ForConditionalGeneration(config)
    num_tokens = 32
    counted = count_flops(skeleton, num_prompt_tokens=num_tokens)
    attention, mlp, head = 4 * 64 * 64, 2 * 64 * 96, 64 * 256
    encoder = 2 * (attention + mlp + 2 * num_tokens * 64)
    # Its second token: keys of the prompt are in the cache, so only queries are projected.
    decoder = 3 * (attention + attention // 2 + mlp + 2 * (2 + num_tokens) * 64)
    assert counted.prefill == 2 * encoder
    assert counted.decode == 2 * (decoder + head)


def test_going_from_token_to_token_is_counted_in_short_prompts() -> None:
    skeleton = build_family_skeleton("jamba")
    in_full = count_flops(skeleton, num_prompt_tokens=100)
    lengths: list[int] = []

    def note(_: nn.Module, __: object, kwargs: dict[str, torch.Tensor]) -> None:
        lengths.append(kwargs["input_ids"].shape[-1])

    skeleton.register_forward_pre_hook(note, with_kwargs=True)
    assert count_flops(skeleton, num_prompt_tokens=100, budget=FEW_OPERATIONS) == in_full
    # The long prompt is given up, and each short one is followed by a token.
    assert lengths == [100, 8, 1, 16, 1, 24, 1, 32, 1]


def test_short_prompts_do_not_stand_for_a_window_that_they_do_not_fill() -> None:
    skeleton = build_family_skeleton("gpt_oss", sliding_window=64)
    in_full = count_flops(skeleton, num_prompt_tokens=100)
    assert count_flops(skeleton, num_prompt_tokens=100, budget=FEW_OPERATIONS) == in_full


def test_a_long_prompt_of_jamba_takes_what_its_shapes_say() -> None:
    """Layers: state space and attention in turn, routed and dense in turn."""
    hidden, inner, state, rank, num_tokens = 64, 128, 16, 4, 2048
    skeleton = build_skeleton_of(
        JambaConfig(
            vocab_size=256,
            hidden_size=hidden,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts=8,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=state,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_dt_rank=rank,
            use_mamba_kernels=False,
            max_position_embeddings=4096,
        )
    )
    counted = count_flops(skeleton, num_prompt_tokens=num_tokens)
    projections = hidden * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * hidden
    scan = inner * state
    attention = hidden * 16 * (4 + 2 + 2 + 4) + 2 * num_tokens * 4 * 16
    experts, dense, router = 2 * 3 * hidden * 96, 3 * hidden * 96, hidden * 8
    head = hidden * 256
    # The convolution of 4 taps runs over 3 tokens more than there are.
    convolution = 4 * inner * (num_tokens + 3)
    each = projections + scan + attention + experts + dense + router
    assert counted.prefill * num_tokens == 2 * (num_tokens * each + convolution + head)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("dbrx", "its forward needs data: it looks up where values are not zero"),
        ("jetmoe", "its forward needs data: it reads values"),
        ("switch_transformers", "its forward needs data: it looks up where values are not zero"),
        ("diffusion_gemma", "it refines a canvas of tokens instead of decoding one by one"),
        (
            "qwen3_omni_moe_talker_text",
            "its forward fails on token ids alone: 'Qwen3OmniMoeTalkerModel' object has no "
            "attribute 'embed_tokens'",
        ),
    ],
)
def test_what_cannot_be_simulated_is_said_in_words(family: str, reason: str) -> None:
    with pytest.raises(CantSimulate) as caught:
        count_flops(build_family_skeleton(family), num_prompt_tokens=16)
    assert caught.value.reason == reason


@pytest.mark.parametrize("family", ["mixtral", "dbrx", "gpt_oss"])
def test_the_skeleton_is_left_as_it_was(family: str) -> None:
    skeleton = build_family_skeleton(family)
    skeleton.train()
    before = _state_of(skeleton)
    # DBRX can't be simulated.
    with pytest.raises(CantSimulate) if family == "dbrx" else nullcontext():
        count_flops(skeleton, num_prompt_tokens=16)
    assert _state_of(skeleton) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [40, 37])
def test_neither_dtype_nor_odd_widths_matter(dtype: torch.dtype, width: int) -> None:
    skeleton = build_family_skeleton("qwen3_moe", moe_intermediate_size=width)
    torch.nn.Module.to(skeleton, dtype=dtype)
    counted = count_flops(skeleton, num_prompt_tokens=16)
    assert counted.experts_prefill == counted.experts_decode == 2 * 3 * 3 * 3 * 64 * width


def _state_of(skeleton: PreTrainedModel) -> list[object]:
    return [
        (name, sorted(vars(module)), module.training, len(module._forward_hooks))
        for name, module in skeleton.named_modules()
    ] + [skeleton.get_experts_implementation()]


def _tiny_llama() -> PreTrainedModel:
    return build_skeleton_of(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    )
