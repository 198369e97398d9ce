"""Quantized skeletons hold what bitsandbytes really holds, and allocate what it did on an H200."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.anatomy.skeleton.dtype_plan import hold_as_loaded
from moetool.anatomy.structure.model_modules import ModelModules
from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config
from moetool.errors import UsageError
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.quantizing.on_meta.linears import FourBitLinear
from moetool.quantizing.on_meta.skeleton import quantize_skeleton
from moetool.quantizing.quantizer import make_config as make_loading_config
from moetool.simulation.repeated.fingerprints import Fingerprints
from tests.families.quantized_loading import NOT_A_FUSED_PAIR
from tests.families.tiny.families import FAMILIES
from tests.quantizing.held_sizes import sizes_held, sizes_really_held
from tests.simulation.skeletons import build_family_skeleton
from tests.tiny_models import build_config, build_model

NF4, FP4, INT8 = Quantization.NF4, Quantization.FP4, Quantization.INT8
AS_LOADED, QUANTIZED = QuantizedExperts.AS_LOADED, QuantizedExperts.QUANTIZED
# The first shares its embeddings with its output, the last two have biases.
MODELS = ("llama", "qwen2_moe", "gpt_oss")
# Those of all other families are compared in one format each where they are loaded anyway.
PACKED = ("mixtral", "deepseek_v3", "gpt_oss")
STAND_INS = {"LeanLinear4bit": "FourBitLinear", "Linear8bitLt": "Int8Linear"}
WAYS = [(NF4, False), (NF4, True), (FP4, False), (INT8, False)]


def quantized(
    skeleton: PreTrainedModel,
    quantization: Quantization,
    *,
    nested: bool = False,
    experts: QuantizedExperts = AS_LOADED,
    **options: Any,
) -> PreTrainedModel:
    quantize_skeleton(
        skeleton, quantization, is_double_quantized=nested, experts=experts, **options
    )
    return skeleton


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a tiny checkpoint in bfloat16 of each model."""
    folders = {}
    for name in dict.fromkeys((*MODELS, *PACKED)):
        folders[name] = tmp_path_factory.mktemp(name)
        options = {"tie_word_embeddings": True} if name == "llama" else {}
        build_model(name, **options).bfloat16().save_pretrained(folders[name])
    return folders


def load(folder: Path, quantization: Quantization, *, nested: bool) -> PreTrainedModel:
    options: dict[str, Any] = (
        {"load_in_8bit": True}
        if quantization is INT8
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quantization.value,
            "bnb_4bit_use_double_quant": nested,
        }
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(**options),
    )
    return model


def build_tiny_skeleton(name: str) -> PreTrainedModel:
    options = {"tie_word_embeddings": True} if name == "llama" else {}
    skeleton = build_whole_skeleton(build_config(name, **options), dtype=torch.bfloat16)
    hold_as_loaded(skeleton, torch.bfloat16)
    for path, buffer in skeleton.named_buffers():
        # Kept in float32 by the family, as it is loaded.
        if path.endswith("e_score_correction_bias"):
            buffer.data = buffer.data.float()
    return skeleton


@pytest.mark.parametrize(("quantization", "nested"), WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_each_module_holds_what_bitsandbytes_holds(
    checkpoints: dict[str, Path], name: str, quantization: Quantization, nested: bool
) -> None:
    real = load(checkpoints[name], quantization, nested=nested)

    skeleton = quantized(build_tiny_skeleton(name), quantization, nested=nested)

    assert sizes_held(skeleton) == sizes_really_held(real)


@pytest.mark.parametrize(("quantization", "nested"), WAYS)
@pytest.mark.parametrize("name", PACKED)
def test_each_module_holds_what_the_loader_makes_of_it(
    checkpoints: dict[str, Path], name: str, quantization: Quantization, nested: bool
) -> None:
    choice = QuantizationChoice(quantization, is_double_quantized=nested)
    real = AutoModelForCausalLM.from_pretrained(
        checkpoints[name], dtype=torch.bfloat16, quantization_config=make_loading_config(choice)
    )

    skeleton = quantized(build_tiny_skeleton(name), quantization, nested=nested, experts=QUANTIZED)

    assert sizes_held(skeleton) == sizes_really_held(real)
    assert [type(module).__name__ for module in skeleton.modules()] == [
        STAND_INS.get(type(module).__name__, type(module).__name__) for module in real.modules()
    ]


def test_no_quantization_leaves_a_skeleton_alone() -> None:
    skeleton = build_tiny_skeleton("mixtral")
    before = sizes_held(skeleton)

    quantize_skeleton(skeleton, Quantization.NONE, is_double_quantized=False, experts=QUANTIZED)

    assert sizes_held(skeleton) == before


@pytest.mark.parametrize("experts", [AS_LOADED, QUANTIZED])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_experts_of_every_family_are_still_found(name: str, experts: QuantizedExperts) -> None:
    skeleton = build_family_skeleton(name).bfloat16()
    before = find_experts(skeleton)
    quantization = (NF4, INT8)[sum(name.encode()) % 2]
    if experts is QUANTIZED and name in NOT_A_FUSED_PAIR:
        with pytest.raises(UsageError, match=NOT_A_FUSED_PAIR[name]) as refused:
            quantized(skeleton, quantization, experts=experts)
        assert refused.value.hint == "Leave out --experts quantized."
        return

    quantized(skeleton, quantization, experts=experts)

    assert find_experts(skeleton) == before


def test_matrices_that_modules_share_are_packed_once() -> None:
    skeleton = build_tiny_skeleton("mixtral")
    first, second = (layer.mlp.experts for layer in skeleton.model.layers[:2])
    second.gate_up_proj = first.gate_up_proj

    quantized(skeleton, NF4, experts=QUANTIZED)

    for name in ("gate_up_proj", "gate_up_proj_absmax"):
        assert getattr(first, name) is getattr(second, name)
    assert first.down_proj is not second.down_proj


def test_dense_models_are_quantized_in_their_linear_layers() -> None:
    skeleton = quantized(build_tiny_skeleton("llama"), NF4, experts=QUANTIZED)

    layers = [module for module in skeleton.modules() if isinstance(module, FourBitLinear)]
    assert len(layers) == 3 * 7
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


@pytest.mark.parametrize("quantization", [NF4, INT8])
def test_layers_alike_are_still_seen_to_be(quantization: Quantization) -> None:
    skeleton = quantized(build_tiny_skeleton("mixtral"), quantization, experts=QUANTIZED)

    fingerprints = Fingerprints()
    layers: Any = skeleton.get_submodule("model.layers")
    first, second = (fingerprints.of_layer(ModelModules(layer)) for layer in layers[:2])
    assert first == second


@pytest.mark.parametrize(
    ("quantization", "weights_bytes"), [(NF4, 13_452_482_048), (INT8, 13_570_414_080)]
)
def test_olmoe_weighs_what_it_weighed_on_an_h200(
    quantization: Quantization, weights_bytes: int
) -> None:
    name = "olmoe-1b-7b"
    config = make_config(
        read_published_config(name), name=name, label=name, code=None, trust_remote_code=False
    )
    skeleton = quantized(build_whole_skeleton(config, dtype=torch.bfloat16), quantization)

    sizes = [size for held in sizes_held(skeleton).values() for size in held]
    in_blocks = sum(-(-size // 512) * 512 for size in sizes)
    assert abs(in_blocks - weights_bytes) <= 512


def test_code_that_asks_whether_it_is_quantized_learns_that_it_is() -> None:
    skeleton = quantized(build_family_skeleton("jamba").bfloat16(), NF4)

    with torch.no_grad():
        mixer: Any = skeleton.get_submodule("model.layers.0.mamba")
        x = torch.empty((1, 4, mixer.hidden_size), dtype=torch.bfloat16, device="meta")
        assert mixer(x).shape == x.shape


def test_weights_that_are_quantized_already_are_refused() -> None:
    skeleton = build_tiny_skeleton("mixtral")
    skeleton.config.quantization_config = {"quant_method": "fp8"}

    with pytest.raises(UsageError, match=r"quantized already \(fp8\)"):
        quantized(skeleton, NF4)


def test_weights_of_other_dtypes_are_refused() -> None:
    skeleton = build_tiny_skeleton("mixtral").double()
    before = sizes_held(skeleton)

    with pytest.raises(UsageError, match="float64"):
        quantized(skeleton, INT8)
    assert sizes_held(skeleton) == before


def test_models_without_linear_layers_are_refused() -> None:
    skeleton = build_tiny_skeleton("mixtral")
    for layer in skeleton.model.layers:
        layer.self_attn = nn.Identity()

    with pytest.raises(UsageError, match="no layer"):
        quantized(skeleton, NF4)
