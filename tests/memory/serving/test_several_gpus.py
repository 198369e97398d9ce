"""Engines on several GPUs, and with quantized weights: shares, flags and refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moetool.catalogue.gpus import read_gpus
from moetool.errors import InputError, UsageError
from moetool.memory.answers.figures import Basis, StoredWeights
from moetool.memory.loaded.loaded_model import LoadedModel
from moetool.memory.machine.gpu_group import take_group
from moetool.memory.scenario import Scenario
from moetool.memory.serving.answer import Engine, Serving, ServingOptions
from moetool.memory.serving.deployment import choose_default_way, refuse_uneven
from moetool.memory.serving.packed_experts import Padding, choose_padding, count_expert_bytes
from moetool.memory.serving.serve import serve_model
from moetool.report.memory.data import render_table_text
from moetool.report.renderer import View
from tests.report.memory.estimates import make_estimate

NUM_EXPERTS = 6
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "num_local_experts": NUM_EXPERTS,
    "pad_token_id": None,
    "eos_token_id": 1,
}


def test_replicas_of_vllm_share_their_experts_and_those_of_sglang_do_not() -> None:
    parts = count_parts()
    assert serve("vllm", "2xh200", "data").weights_bytes == parts["rest"] + parts["experts"] // 2
    assert serve("sglang", "2xh200", "data").weights_bytes == parts["rest"] + parts["experts"]


def test_the_gpu_with_the_most_experts_counts() -> None:
    parts = count_parts()
    found = serve("vllm", "4xh200", "data,expert")
    # Six experts on four GPUs: two of them on the first ones.
    assert found.weights_bytes == parts["rest"] + parts["experts"] * 2 // NUM_EXPERTS
    assert (found.data_parallel, found.expert_parallel) == (4, 4)
    one = serve("vllm", "h200")
    assert found.cache_bytes_per_token == one.cache_bytes_per_token


def test_heads_of_keys_are_shared_or_copied() -> None:
    one, two, four = (serve("vllm", f"{number}xh200") for number in (1, 2, 4))
    token_bytes = one.cache_bytes_per_token
    assert token_bytes is not None
    assert two.cache_bytes_per_token == four.cache_bytes_per_token == token_bytes // 2


def test_layers_of_llama_cpp_are_placed_whole() -> None:
    one, two = serve("llama.cpp", "h200"), serve("llama.cpp", "2xh200")
    assert one.weights_bytes is not None
    assert two.weights_bytes is not None
    assert one.weights_bytes // 2 < two.weights_bytes < one.weights_bytes
    assert one.compute_bytes is not None
    assert two.compute_bytes is None
    assert any("several GPUs are null" in note for note in two.notes)


def test_llama_cpp_makes_room_for_its_compute_buffer() -> None:
    gpu, found = read_gpus()["t4"], serve("llama.cpp", "t4", length=32768)
    assert found.most is not None
    assert found.weights_bytes is not None
    assert found.compute_bytes is not None
    assert found.most.num_sequences > 0
    assert found.most.pool_bytes == gpu.memory_bytes - found.weights_bytes - found.compute_bytes
    assert found.cache_bytes_per_token is not None
    assert found.most.num_tokens * found.cache_bytes_per_token <= found.most.pool_bytes


@pytest.mark.parametrize(
    ("engine", "gpu", "ways", "tensor", "flags"),
    [
        ("vllm", "2xh200", None, None, "--tensor-parallel-size 2"),
        ("vllm", "2xh200", "expert", None, "--tensor-parallel-size 2 --enable-expert-parallel"),
        ("vllm", "4xh200", "data", 2, "--tensor-parallel-size 2 --data-parallel-size 2"),
        ("sglang", "2xh200", "expert", None, "--tp-size 2 --ep-size 2"),
        ("sglang", "4xh200", "data", 2, "--tp-size 2 --dp-size 2"),
        ("llama.cpp", "2xh200", None, None, "--split-mode layer --tensor-split 1,1"),
    ],
)
def test_flags_name_the_way_of_sharing(
    engine: str, gpu: str, ways: str | None, tensor: int | None, flags: str
) -> None:
    assert serve(engine, gpu, ways, tensor).flags[engine].endswith(flags)


@pytest.mark.parametrize(
    ("engine", "gpu", "ways", "tensor", "message", "hint"),
    [
        ("vllm", "3xh200", None, None, "8 attention heads", "Give --gpu 2xh200."),
        ("vllm", "h200", None, 3, "8 attention heads", "Give --tensor-parallel 2."),
        ("vllm", "128xh200", "data", 1, "experts' width of 192", "Give --parallel data,expert."),
        ("vllm", "6xh200", None, None, "8 attention heads", "Give --gpu 4xh200."),
        ("vllm", "2xh200", "device-map", None, "no device map", "Give --parallel tensor."),
        ("sglang", "4xh200", "expert", None, "6 experts", "Give --gpu 2xh200."),
        ("sglang", "2xh200", "data,expert", None, "each replica has one", "tensor,expert"),
        ("llama.cpp", "2xh200", "tensor", None, "whole layers", "--parallel device-map"),
        ("vllm", "4xh200", None, 2, "not one group of 2", "Add data to --parallel"),
        ("vllm", "4xh200", "data", 3, "not one group of 3", "Give --tensor-parallel 4"),
    ],
)
def test_what_an_engine_refuses_is_refused(
    engine: str, gpu: str, ways: str | None, tensor: int | None, message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        serve(engine, gpu, ways, tensor)
    assert hint in str(caught.value.hint)


def test_blocks_in_fp8_are_not_cut() -> None:
    skeleton = build(intermediate_size=768)
    options = ServingOptions(Engine.VLLM)
    for number, ways in ((2, "tensor"), (8, "expert")):
        group = take_group(f"{number}xh200", ways)
        refuse_uneven(skeleton, options, group, has_fp8_blocks=True)
    four = take_group("4xh200", "tensor")
    refuse_uneven(skeleton, options, four, has_fp8_blocks=False)
    with pytest.raises(UsageError, match=r"^The 6 fp8 blocks .* by 4 GPUs\.") as caught:
        refuse_uneven(skeleton, options, four, has_fp8_blocks=True)
    assert caught.value.hint == "Give --parallel tensor,expert."


def test_packed_experts_are_padded_for_the_kernel() -> None:
    sizes = {"num_experts": 2, "hidden": 96, "width": 40}
    exact, padded = Padding(1, 1, 2), Padding(64, 128, 4)
    # Each 32 numbers take 16 bytes, and one for their scale.
    assert count_expert_bytes("gate_up_proj", **sizes, padding=exact) == 2 * 80 * 3 * 17
    assert count_expert_bytes("gate_up_proj", **sizes, padding=padded) == 2 * 128 * 4 * 17
    assert count_expert_bytes("down_proj", **sizes, padding=padded) == 2 * 128 * 2 * 17
    assert count_expert_bytes("down_proj_bias", **sizes, padding=padded) == 2 * 128 * 4


@pytest.mark.parametrize("ways", ["tensor", "expert"])
def test_experts_in_mxfp4_stay_packed(ways: str) -> None:
    model = store(build("gpt_oss", quantization_config={"quant_method": "mxfp4"}), "mxfp4")
    plain = serve("vllm", "2xh200", ways, model=store(model.skeleton, None))
    packed = serve("vllm", "2xh200", ways, model=model)
    # On an H200, widths are padded to 64; half of 192 is not a multiple of it.
    width, num_experts = (128, NUM_EXPERTS) if ways == "tensor" else (192, NUM_EXPERTS // 2)
    hidden, layers = SIZES["hidden_size"], SIZES["num_hidden_layers"]
    biases = num_experts * (2 * width + hidden) * 4
    matrices = num_experts * 3 * width * hidden * 17 // 32
    unpadded = 96 if ways == "tensor" else 192
    in_16_bits = num_experts * (3 * unpadded * hidden + 2 * unpadded + hidden) * 2
    assert plain.weights_bytes is not None
    assert packed.weights_bytes == plain.weights_bytes + layers * (biases + matrices - in_16_bits)


def test_fp8_stays_where_the_gpu_multiplies_it() -> None:
    skeleton = build(intermediate_size=512, quantization_config={"quant_method": "fp8"})
    held = build(intermediate_size=512)
    for module in held.modules():
        for name, values in list(module.named_parameters(recurse=False)):
            if values.dim() > 2:
                stored = torch.nn.Parameter(values.to(torch.float8_e4m3fn), requires_grad=False)
                setattr(module, name, stored)
    model = replace(store(skeleton, "fp8"), held=held)
    experts = sum(each.nbytes for each in held.parameters() if each.dim() > 2)
    rest = sum(each.nbytes for each in held.parameters()) - experts
    assert serve("vllm", "h200", model=model).weights_bytes == rest + experts
    half = serve("sglang", "2xh200", "expert", model=model).weights_bytes
    assert half is not None
    assert rest // 2 + experts // 2 < half < rest + experts // 2
    older = serve("vllm", "a100-80gb", model=model)
    assert (older.weights_bytes, older.most) == (None, None)
    assert any("before compute capability 8.9" in note for note in older.notes)
    # The converter to GGUF dequantizes it.
    converted, plain = (
        serve("llama.cpp", "h200", model=each) for each in (model, store(skeleton, None))
    )
    assert converted.weights_bytes == plain.weights_bytes


@pytest.mark.parametrize(
    ("engine", "capability", "shares_experts"),
    [
        (Engine.VLLM, (7, 5), False),
        (Engine.SGLANG, (8, 0), False),
        (Engine.SGLANG, (9, 0), True),
        (Engine.VLLM, None, False),
    ],
)
def test_unknown_kernels_are_not_guessed(
    engine: Engine, capability: tuple[int, int] | None, shares_experts: bool
) -> None:
    with pytest.raises(InputError, match="not known here"):
        choose_padding(engine, capability, shares_experts=shares_experts)


def test_the_page_shows_all_replicas() -> None:
    found = serve("vllm", "4xh200", "data,expert")
    assert found.most is not None
    estimate = make_estimate(serving=found)
    text = render_table_text([estimate], View(width=80))
    num_sequences = found.most.num_sequences
    assert "served by vllm on 4 × h200" in text
    assert re.search(rf"the same in all 4 replicas +at most {num_sequences * 4:,}\n", text)


def count_parts() -> dict[str, int]:
    parameters = list(build().named_parameters())
    experts = sum(values.nbytes for path, values in parameters if ".experts." in path)
    return {"experts": experts, "rest": sum(values.nbytes for _, values in parameters) - experts}


def serve(
    engine: str,
    gpu: str,
    ways: str | None = None,
    tensor: int | None = None,
    *,
    length: int = 512,
    model: LoadedModel | None = None,
) -> Serving:
    options = ServingOptions(Engine(engine), tensor_parallel=tensor)
    group = take_group(gpu, ways, default=choose_default_way(options))
    return serve_model(
        model or store(build(), None),
        Scenario(num_prompt_tokens=length - 1, num_new_tokens=1),
        read_gpus()[gpu] if group is None else group.gpu,
        options,
        group=group,
    )


def store(skeleton: PreTrainedModel, method: str | None) -> LoadedModel:
    """Return a model whose files are quantized by a method, or not."""
    if method is None:
        return LoadedModel(skeleton, held=skeleton)
    stored = StoredWeights(
        method=method,
        stored_bytes=None,
        loaded_bytes=None,
        is_dequantized=False,
        basis=Basis.LOADED,
    )
    return LoadedModel(skeleton, held=skeleton, stored=stored)


def build(model_type: str = "mixtral", **fields: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **SIZES | fields)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model
