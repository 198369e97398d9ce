"""Pools of vLLM and SGLang: what they hold, and what is refused or unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moetool.errors import InputError, UsageError
from moetool.memory.serving import sglang, vllm
from moetool.memory.serving.answer import ServingOptions
from moetool.memory.serving.deployment import Deployment
from moetool.memory.serving.geometry import CacheGeometry, read_geometry
from moetool.memory.serving.weights import count_weights_bytes

GEOMETRIES = st.builds(
    CacheGeometry,
    num_full=st.integers(1, 12),
    num_sliding=st.integers(0, 12),
    window=st.integers(1, 200),
    num_kv_heads=st.integers(1, 8),
    head_dim=st.integers(1, 64),
    is_latent=st.just(False),
).map(
    lambda each: (
        each
        if each.num_sliding
        else CacheGeometry(each.num_full, 0, None, each.num_kv_heads, each.head_dim, False)
    )
)


@given(GEOMETRIES, st.integers(0, 2**26), st.integers(1, 5000))
def test_no_engine_holds_more_sequences_than_fill_its_memory(
    geometry: CacheGeometry, pool_bytes: int, length: int
) -> None:
    layer_bytes = geometry.count_values() * 2
    in_window = length if geometry.window is None else min(length, geometry.window)
    least = layer_bytes * (geometry.num_full * length + geometry.num_sliding * in_window)
    found = [
        engine.count_capacity(
            geometry, pool_bytes, token_bytes_per_layer=layer_bytes, length=length
        )
        for engine in (vllm, sglang)
    ]
    for capacity in found:
        assert capacity.num_sequences * least <= pool_bytes


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**22), st.integers(1, 300))
def test_vllm_fills_blocks_one_after_another(
    num_layers: int, num_heads: int, pool_bytes: int, length: int
) -> None:
    geometry = CacheGeometry(num_layers, 0, None, num_heads, 8, is_latent=False)
    layer_bytes = geometry.count_values() * 2
    block_bytes = 16 * layer_bytes * num_layers
    free = -1
    while (free + 2) * block_bytes <= pool_bytes:
        free += 1
    expected = 0
    while free >= (needed := len(range(0, length, 16))):
        free -= needed
        expected += 1
    found = vllm.count_capacity(
        geometry, pool_bytes, token_bytes_per_layer=layer_bytes, length=length
    )
    assert found.num_sequences == expected


def test_tensor_parallel_cuts_projections_and_experts() -> None:
    skeleton = build("mixtral", num_local_experts=4, num_experts_per_tok=2)
    geometry = read_geometry(skeleton)
    one, two, four = (
        count_weights_bytes(
            skeleton, geometry, Deployment(number, tensor=number, expert_parts=number)
        )
        for number in (1, 2, 4)
    )
    whole = sum(
        values.nbytes
        for path, values in skeleton.named_parameters()
        if "norm" in path or path.endswith("gate.weight")
    )
    assert two == whole + (one - whole) // 2
    # Four GPUs each hold a copy of one of the two heads of keys and values.
    keys = sum(
        values.nbytes
        for path, values in skeleton.named_parameters()
        if "k_proj" in path or "v_proj" in path
    )
    assert four == whole + keys // 2 + (one - whole - keys) // 4


def test_latent_attention_is_stored_once() -> None:
    skeleton = build("deepseek_v3", kv_lora_rank=32, qk_rope_head_dim=16, n_routed_experts=4)
    geometry = read_geometry(skeleton)
    assert geometry.count_values() == geometry.count_values(num_gpus=4) == 48


def test_layers_with_states_are_unknown() -> None:
    with pytest.raises(InputError, match="not known here"):
        read_geometry(build("jamba", num_experts=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "vlm"}, "engine can't be"),
        ({"engine": "vllm", "gpu_memory_utilization": 0.0}, "has to be above 0"),
        ({"engine": "vllm", "gpu_memory_utilization": 1.5}, "GPU memory utilization can't be"),
        ({"engine": "vllm", "kv_cache_dtype": "q8_0"}, "has no cache in q8_0"),
        ({"engine": "llama.cpp", "kv_cache_dtype": "fp8"}, "has no cache in fp8"),
        ({"engine": "llama.cpp", "tensor_parallel": 2}, "places whole layers"),
        ({"engine": "llama.cpp", "gpu_memory_utilization": 0.5}, "no share of the memory"),
        ({"engine": "sglang", "tensor_parallel": 0}, "tensor-parallel GPUs can't be"),
    ],
)
def test_settings_that_an_engine_lacks_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ServingOptions(**settings)
    assert caught.value.hint


def build(model_type: str, **fields: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if model_type == "deepseek_v3" else 2,
        pad_token_id=None,
        **fields,
    )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model
