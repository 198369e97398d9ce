"""Quantized skeletons hold what bitsandbytes really holds, and allocate what it did on an H200."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Params4bit
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.anatomy.skeleton.dtype_plan import hold_as_loaded
from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config
from moetool.errors import UsageError
from moetool.quantized.kinds import Quantization, QuantizedExperts
from moetool.quantizing.on_meta.skeleton import quantize_skeleton
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins
from moetool.simulation.repeated.fingerprints import Fingerprints
from tests.families.tiny.configs import FAMILIES
from tests.simulation.skeletons import build_family_skeleton
from tests.tiny_models import build_config, build_model

NF4, FP4, INT8 = Quantization.NF4, Quantization.FP4, Quantization.INT8
AS_LOADED, QUANTIZED = QuantizedExperts.AS_LOADED, QuantizedExperts.QUANTIZED
# The first shares its embeddings with its output, the last two have biases.
MODELS = ("llama", "mixtral", "deepseek_v3", "olmoe", "qwen2_moe", "gpt_oss")
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


def sizes_held(skeleton: nn.Module) -> dict[str, list[int]]:
    """Return the bytes of each module's own tensors in a skeleton, in ascending order."""
    sizes = {}
    for path, module in skeleton.named_modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        sizes[path] = sorted(tensor.nbytes for tensor in tensors)
    return sizes


def sizes_really_held(model: nn.Module) -> dict[str, list[int]]:
    """Return the same for a model that bitsandbytes quantized, including unregistered tensors."""
    sizes = {}
    for path, module in model.named_modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in list(tensors):
            if isinstance(tensor, Params4bit):
                tensors += state_tensors(tensor.quant_state)
            elif getattr(tensor, "SCB", None) is not None:
                tensors.append(tensor.SCB)
        sizes[path] = sorted(tensor.nbytes for tensor in tensors)
    return sizes


def state_tensors(state: Any) -> list[torch.Tensor]:
    found = [state.absmax, state.code]
    if state.nested:
        found += [state.offset, state.state2.absmax, state.state2.code]
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a tiny checkpoint in bfloat16 of each model."""
    folders = {}
    for name in MODELS:
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


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_quantized_experts_hold_what_bitsandbytes_makes_of_them(name: str, nested: bool) -> None:
    real = build_model(name).bfloat16()
    skeleton = quantized(build_tiny_skeleton(name), NF4, nested=nested, experts=QUANTIZED)

    path = find_experts(skeleton).layers[0].experts_path
    experts = real.get_submodule(path)
    states = []
    for matrices in ("gate_up_proj", "down_proj"):
        replace_parameter_4bit(experts, matrices, quant_type="nf4", compress_statistics=nested)
        parametrizations: Any = experts.parametrizations
        parametrization = parametrizations[matrices]
        states += [parametrization.original, *state_tensors(parametrization[0].quant_state)]
    biases = [p for path, p in experts.named_parameters() if "bias" in path]
    assert sizes_held(skeleton)[path] == sorted(tensor.nbytes for tensor in (*states, *biases))


def test_experts_in_8_bits_hold_a_byte_a_weight_and_a_scale_a_row() -> None:
    skeleton = quantized(build_tiny_skeleton("mixtral"), INT8, experts=QUANTIZED)

    # 8 experts, hidden size 64, intermediate size 96.
    path = find_experts(skeleton).layers[0].experts_path
    rows = (8 * 2 * 96, 8 * 64)
    assert sizes_held(skeleton)[path] == sorted(
        [rows[0] * 64, rows[1] * 96, rows[0] * 4, rows[1] * 4]
    )


def test_no_quantization_leaves_a_skeleton_alone() -> None:
    skeleton = build_tiny_skeleton("mixtral")
    before = sizes_held(skeleton)

    quantize_skeleton(skeleton, Quantization.NONE, is_double_quantized=False, experts=QUANTIZED)

    assert sizes_held(skeleton) == before


@pytest.mark.parametrize(
    ("quantization", "nested", "operation"),
    [
        (NF4, False, "dequantize_4bit"),
        (NF4, True, "dequantize_4bit"),
        (INT8, False, "dequantize_int8"),
    ],
)
def test_experts_are_dequantized_whole_once_a_run_and_let_go_after_it(
    quantization: Quantization, nested: bool, operation: str
) -> None:
    skeleton = quantized(
        build_tiny_skeleton("mixtral"), quantization, nested=nested, experts=QUANTIZED
    )
    experts: Any = skeleton.get_submodule(find_experts(skeleton).layers[0].experts_path)
    # In bfloat16: 8 experts, hidden size 64, intermediate size 96.
    gate_up_bytes, down_bytes = 8 * 64 * 2 * 96 * 2, 8 * 64 * 96 * 2
    origins = Origins()
    with torch.inference_mode(), AllocationRecorder(skeleton, origins=origins) as recorder:
        x = torch.empty((5, 64), dtype=torch.bfloat16, device="meta")
        ids = torch.zeros((5, 2), dtype=torch.long, device="meta")
        weights = torch.empty((5, 2), dtype=torch.bfloat16, device="meta")
        results = []
        for _ in range(2):
            first = len(recorder.events)
            experts.config._experts_implementation = "batched_mm"
            results.append(experts(x, ids, weights))
            events = recorder.events[first:]
            named = [(e, origins.found[e.origin].operation) for e in events if e.num_bytes >= 0]
            taken = [event for event, name in named if name == operation]
            assert [event.num_bytes for event in taken] == [gate_up_bytes, down_bytes]
            gone = [event.block for event in events if event.num_bytes < 0]
            # The first is still there when the second comes, and both go last of all.
            assert events.index(taken[1]) < min(
                i for i, e in enumerate(events) if e.num_bytes < 0 and e.block == taken[0].block
            )
            assert set(gone[-2:]) == {event.block for event in taken}


def test_experts_read_outside_of_a_run_are_not_kept() -> None:
    skeleton = quantized(build_tiny_skeleton("mixtral"), NF4, experts=QUANTIZED)
    experts: Any = skeleton.get_submodule(find_experts(skeleton).layers[0].experts_path)

    assert experts.down_proj.shape == (8, 64, 96)
    assert experts.down_proj.dtype is torch.bfloat16
    assert experts.down_proj is not experts.down_proj


@pytest.mark.parametrize(
    ("quantization", "experts"), [(NF4, AS_LOADED), (NF4, QUANTIZED), (INT8, QUANTIZED)]
)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_experts_of_every_family_are_still_found(
    name: str, quantization: Quantization, experts: QuantizedExperts
) -> None:
    skeleton = build_family_skeleton(name).bfloat16()
    before = find_experts(skeleton)

    quantized(skeleton, quantization, experts=experts)

    assert find_experts(skeleton) == before


@pytest.mark.parametrize("quantization", [NF4, INT8])
def test_layers_alike_are_still_seen_to_be(quantization: Quantization) -> None:
    skeleton = quantized(build_tiny_skeleton("mixtral"), quantization, experts=QUANTIZED)

    fingerprints = Fingerprints()
    layers: Any = skeleton.get_submodule("model.layers")
    first, second = (fingerprints.of_layer(layer) for layer in layers[:2])
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
