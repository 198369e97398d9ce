"""Check that a family's experts are packed as bitsandbytes packs linear layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes.nn
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool import RoutingRecorder
from moetool.anatomy.routing.moe_layers import MoeLayer, find_moe_layers
from moetool.errors import UsageError
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.experts import packed_tensors
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.quantizing.layout import find_matrices, list_converted_linears, list_packable
from moetool.quantizing.loading.packed_modules import is_packed
from moetool.quantizing.on_meta.skeleton import quantize_skeleton
from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.quantizing.quantizer import make_config
from moetool.quantizing.sizes import measure_bytes, plan_bytes
from tests.families.quantized_saving import SAVED, check_saving
from tests.families.tiny.dense_reference import (
    apply_decisions,
    observe_experts,
    scales_input,
)
from tests.families.tiny.families import find_family
from tests.families.tiny.models import LOOPED_FAMILIES, text_inputs
from tests.families.tiny.proof import run
from tests.quantizing.held_sizes import sizes_held, sizes_really_held
from tests.simulation.skeletons import build_skeleton_of

layers: Any = bitsandbytes.nn
TOLERANCE = 1e-5
NOT_A_FUSED_PAIR = {
    "doge": "they are rows of embeddings",
    "jetmoe": "their matrices are in two modules",
    "nllb-moe": "each is a separate module",
    "switch_transformers": "each is a separate module",
}
CHOICES = (
    QuantizationChoice(Quantization.NF4),
    QuantizationChoice(Quantization.FP4),
    QuantizationChoice(Quantization.NF4, is_double_quantized=True),
    QuantizationChoice(Quantization.INT8),
)


def check_packing(name: str, model: PreTrainedModel, folder: Path) -> None:
    """Check that a family's experts are packed while they load, or refused before.

    Args:
        name: The family. It decides on the format.
        model: Its model, whose experts get the dequantized weights.
        folder: The folder that it is saved in.
    """
    if name in NOT_A_FUSED_PAIR:
        with pytest.raises(UsageError, match=NOT_A_FUSED_PAIR[name]):
            list_packable(model, Packing(Quantization.NF4))
        linears = [path for path, _ in list_converted_linears(model)]
        assert linears
        assert not any("experts" in path for path in linears)
        # Switch converts the input of such layers to the dtype of their weights.
        assert not any(path.endswith(".wo") for path in linears)
        return
    choice = CHOICES[sum(name.encode()) % len(CHOICES)]
    loader: Any = type(model)
    loaded, report = loader.from_pretrained(
        folder,
        quantization_config=make_config(choice),
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(report.values())
    # A run changes what bitsandbytes' layers hold.
    check_simulated(name, model, loaded, choice)
    if name in SAVED:
        check_saving(loaded, model, folder, choice)
    assert not any(is_linear_of_bitsandbytes(loaded, path) for path in list_gates(loaded))
    assert measure_bytes(loaded) == plan_bytes(model, choice, dtype=torch.float32)
    routed = find_moe_layers(model, allow_inexact=True)
    assert find_moe_layers(loaded, allow_inexact=True) == routed
    # Recording shows how all layers compute. The tensors of the others are made in the same way.
    is_recorded = choice.quantization is Quantization.FP4 and name not in LOOPED_FAMILIES
    chosen = routed if is_recorded else routed[-1:]
    # DiffusionGemma's two stacks share experts.
    owners = {id(next(model.get_submodule(x.experts_path).parameters())): x for x in chosen}
    for layer in owners.values():
        compare_experts(model, loaded, layer, choice)
    check_outputs(model.get_submodule(routed[-1].experts_path), loaded, routed[-1])
    if is_recorded:
        check_recording(model, loaded, routed)


def check_simulated(
    name: str, model: PreTrainedModel, loaded: PreTrainedModel, choice: QuantizationChoice
) -> None:
    """Check that a quantized skeleton holds what a loaded model holds, module by module."""
    skeleton = build_skeleton_of(model.config, find_family(name).model_class)
    quantize_skeleton(
        skeleton,
        choice.quantization,
        is_double_quantized=choice.is_double_quantized,
        experts=QuantizedExperts.QUANTIZED,
    )
    assert sizes_held(skeleton) == sizes_really_held(loaded)


def list_gates(model: PreTrainedModel) -> list[str]:
    ends = ("gate", "router", "router_mlp", "shared_expert_gate", "lm_head")
    return [path for path, _ in model.named_modules() if path.rpartition(".")[2] in ends]


def is_linear_of_bitsandbytes(model: PreTrainedModel, path: str) -> bool:
    kinds = (layers.Linear4bit, layers.Linear8bitLt)
    return any(isinstance(module, kinds) for module in model.get_submodule(path).modules())


def compare_experts(
    model: PreTrainedModel, loaded: PreTrainedModel, layer: MoeLayer, choice: QuantizationChoice
) -> None:
    """Compare an experts module's tensors, then give the plain module the dequantized matrices."""
    plain = model.get_submodule(layer.experts_path)
    packed = loaded.get_submodule(layer.experts_path)
    assert is_packed(packed)
    for matrix in find_matrices(plain) or ():
        # DBRX's parameters have two dimensions.
        stack = plain.get_parameter(matrix.name).view(matrix.plain_shape)
        tensors = packed_tensors(packed, matrix)
        for expert in range(matrix.num_experts):
            weight = stack[expert].detach()
            weight = weight.T.contiguous() if matrix.is_transposed else weight
            parts, dequantized = quantize_by_bitsandbytes(weight, matrix, choice)
            for name, part in parts.items():
                assert torch.equal(tensors[name][expert].flatten(), part.flatten())
            assert tensors.keys() == parts.keys()
            with torch.no_grad():
                weight = dequantized.T if matrix.is_transposed else dequantized
                stack[expert].copy_(weight)


def quantize_by_bitsandbytes(
    weight: torch.Tensor, matrix: ExpertMatrix, choice: QuantizationChoice
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a linear layer's codes and scales by name, and the weights that they stand for."""
    name, shape = matrix.name, (matrix.in_features, matrix.out_features)
    if choice.quantization is Quantization.INT8:
        layer = layers.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
        layer.weight = layers.Int8Params(weight, requires_grad=False).to("cpu")
        codes, scale = layer.weight.CB, layer.weight.SCB
        return {name: codes, f"{name}_scale": scale}, codes * scale[:, None] / 127
    layer = layers.Linear4bit(*shape, bias=False)
    layer.weight = layers.Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=choice.is_double_quantized,
        quant_type=choice.quantization.value,
    ).to("cpu")
    codes, state = layer.weight.data, layer.weight.quant_state
    parts = {name: codes, f"{name}_absmax": state.absmax}
    scales = state.absmax
    if choice.is_double_quantized:
        parts |= {f"{name}_nested_absmax": state.state2.absmax, f"{name}_offset": state.offset}
        blocks = torch.arange(len(scales)) // state.state2.blocksize
        scales = state.state2.code[scales.long()] * state.state2.absmax[blocks] + state.offset
    halves = torch.stack([codes.flatten() >> 4, codes.flatten() & 15], dim=1).flatten()
    values = state.code[halves.long()] * scales[torch.arange(len(halves)) // state.blocksize]
    return parts, values.view(matrix.out_features, matrix.in_features)


def check_outputs(plain: nn.Module, loaded: PreTrainedModel, layer: MoeLayer) -> None:
    """Compare packed experts with a dense loop in float64, in two dtypes."""
    packed = loaded.get_submodule(layer.experts_path)
    matrices = find_matrices(plain)
    assert matrices is not None
    width = matrices[0].in_features
    generator = torch.Generator().manual_seed(0)
    # Some experts, such as the last, aren't hit.
    num_ids = layer.num_experts + layer.num_identity_experts
    ids = torch.rand(9, num_ids - 1, generator=generator).argsort(dim=1)[:, :3]
    weights = torch.rand(9, 3, generator=generator)
    for dtype, tolerance in ((torch.float32, TOLERANCE), (torch.bfloat16, 2**-7)):
        rows = torch.randn(9, width, generator=generator).to(dtype)
        module = packed if dtype is torch.float32 else copy.deepcopy(packed).to(dtype)
        with torch.inference_mode():
            output = run_packed(module, rows, ids, weights.to(dtype)).double()
            expected = apply_decisions(plain, rows, ids, weights.to(dtype))
        assert (output - expected).norm() <= tolerance * expected.norm()


def run_packed(
    module: nn.Module, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return what packed experts make of rows, handed over as the family's block does."""
    if not scales_input(module):
        output: torch.Tensor = module(rows, ids, weights)
        return output
    num_experts = module.num_experts
    assert isinstance(num_experts, int)
    scales = rows.new_zeros(len(rows), num_experts).scatter_(1, ids, weights)
    scaled = rows.repeat(num_experts, 1) * scales.T.reshape(-1, 1)
    return module(scaled).view(num_experts, *rows.shape).sum(dim=0)  # type: ignore[no-any-return]


def check_recording(
    model: PreTrainedModel, loaded: PreTrainedModel, routed: list[MoeLayer]
) -> None:
    """Check that decisions recorded from a quantized model are those that its experts ran."""
    for module in loaded.modules():
        # On some CPUs this kernel refuses widths that tiny models have.
        if isinstance(module, layers.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    with (
        torch.inference_mode(),
        RoutingRecorder(loaded, allow_inexact=True) as recorder,
        observe_experts(loaded, routed) as observed,
    ):
        run(loaded, dict(text_inputs(model)))
    recorded = [layer for call in recorder.calls for layer in call.layers]
    assert recorded
    for layer in recorded:
        path = layer.layer.experts_path
        seen = replace(observed[path], experts=model.get_submodule(path))
        ids, weights = torch.from_numpy(layer.experts).long(), torch.from_numpy(layer.weights)
        assert seen.relative_error(ids, weights) <= TOLERANCE
        assert seen.relative_error(ids.roll(1, dims=0), weights) > TOLERANCE
