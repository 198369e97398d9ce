"""Kernels that run past hooks are named in an error; others, and quantized experts, are recorded."""

from __future__ import annotations

import json
from types import MethodType
from typing import Any

import pandas as pd
import pytest
import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations import finegrained_fp8, moe
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.utils.quantization_config import FineGrainedFP8Config

from moetool import RoutingRecorder
from moetool.anatomy.routing.moe_layers import find_moe_layers
from moetool.anatomy.skeleton.build import find_auto_class
from moetool.checkpoint.config import load_config
from moetool.checkpoint.files import Checkpoint
from moetool.checkpoint.stated.quantization import find_method
from moetool.errors import UntraceableError
from moetool.tracing.running.load_model import load_model
from tests.tiny_models import build_config, build_model


def record(model: nn.Module) -> pd.DataFrame:
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model(input_ids=torch.arange(3, 17).view(2, 7))
    return recorder.to_frame()


class Mxfp4GptOssMLP(nn.Module):
    """Runs past its modules, like the class of this name in transformers."""

    def __init__(self, router: nn.Module, experts: nn.Module) -> None:
        super().__init__()
        self.router = router
        self.experts = experts

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (self.router.get_parameter(name) for name in ("weight", "bias"))
        logits = nn.functional.linear(hidden_states.flatten(0, 1), weight, bias)
        self.experts.get_parameter("down_proj").sum()  # where kernels would use the experts
        return hidden_states, logits


def test_native_mxfp4_kernels_are_named_with_what_helps() -> None:
    model = build_model("gpt_oss")
    block = model.get_submodule("model.layers.1.mlp")
    router, experts = (block.get_submodule(name) for name in ("router", "experts"))
    model.set_submodule("model.layers.1.mlp", Mxfp4GptOssMLP(router, experts))
    with pytest.raises(UntraceableError, match="1 of 3 routed layers ran without") as caught:
        record(model)
    assert "Mxfp4Config(dequantize=True)" in caught.value.hint
    assert "silent: model.layers.1.mlp.experts" in caught.value.facts
    assert "seen: block Mxfp4GptOssMLP, experts GptOssExperts" in caught.value.facts


def test_a_hub_kernel_in_a_blocks_place_is_named_with_what_helps() -> None:
    """Another layer's forward is bound to the block, as the `kernels` package does."""

    class MegaBlocksMoeMLP:
        def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    model = build_model("gpt_oss")
    block = model.get_submodule("model.layers.0.mlp")
    block.forward = MethodType(MegaBlocksMoeMLP.forward, block)
    with pytest.raises(UntraceableError, match="1 of 3 routed layers ran without") as caught:
        record(model)
    assert "use_kernels=False" in caught.value.hint
    (fact,) = (fact for fact in caught.value.facts if "forward of model.layers.0.mlp is" in fact)
    assert fact.endswith("MegaBlocksMoeMLP.forward")


def test_an_experts_implementation_that_is_not_seen_is_named_with_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(moe.ExpertsInterface._global_mapping, "sonicmoe", lambda *_: None)
    model = build_model("mixtral")
    model.config._experts_implementation = "sonicmoe"
    monkeypatch.setattr(type(model.get_submodule("model.layers.0.mlp")), "forward", skip_experts)
    with pytest.raises(UntraceableError, match="3 of 3 routed layers ran without") as caught:
        record(model)
    assert 'experts_implementation="eager"' in caught.value.hint
    assert "seen: experts_implementation sonicmoe" in caught.value.facts


def skip_experts(_block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states


def test_a_kernel_in_a_routers_place_is_seen_through() -> None:
    """The router's forward is replaced, as the Hub's kernels for Laguna and Qwen3.5 do."""
    expected = record(build_model("qwen3_moe"))
    model = build_model("qwen3_moe")
    for layer in find_moe_layers(model):
        router = model.get_submodule(f"{layer.block_path}.gate")
        router.forward = MethodType(type(router).forward, router)
    pd.testing.assert_frame_equal(record(model), expected)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_an_experts_implementation_of_the_registry_is_seen(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Implementations such as deepgemm and sonicmoe need a GPU, so a plain one stands in."""
    calls: list[torch.Tensor] = []

    def compute(
        experts: nn.Module, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        calls.append(ids)
        output: torch.Tensor = moe.batched_mm_experts_forward(experts, rows, ids, weights)
        return output

    monkeypatch.setitem(moe.ExpertsInterface._global_mapping, "own_kernel", compute)
    expected = record(build_model(family))
    model = build_model(family)
    model.config._experts_implementation = "own_kernel"
    rows = record(model)
    assert len(calls) == 3
    exact = [name for name in rows if name != "weight"]
    pd.testing.assert_frame_equal(rows[exact], expected[exact])
    by_layer = torch.tensor(rows["expert"].to_numpy()).view(3, -1, calls[0].shape[1])
    assert torch.equal(by_layer.sort().values, torch.stack(calls).sort().values)


@pytest.mark.parametrize(
    ("family", "quant_type"), [("mixtral", "nf4"), ("gpt_oss", "fp4"), ("deepseek_v3", "nf4")]
)
def test_experts_in_4_bit_are_found_and_recorded(family: str, quant_type: Any) -> None:
    sizes = {"intermediate_size": 64, "moe_intermediate_size": 64}
    plain, model = (build_model(family, **sizes) for _ in range(2))
    expected = record(plain)
    layers = find_moe_layers(model)
    for layer in layers:
        experts = model.get_submodule(layer.experts_path)
        for name in ("gate_up_proj", "down_proj"):
            replace_parameter_4bit(experts, name, quant_type=quant_type)
        stored = {parameter.dtype for parameter in experts.parameters() if parameter.dim() == 2}
        assert torch.uint8 in stored
    assert find_moe_layers(model) == layers
    rows = record(model)
    assert len(rows) == len(expected)
    # The choice of the first routed layer does not depend on any expert.
    first = layers[0].layer
    exact = [name for name in rows if name != "weight"]
    left, right = (frame[frame["layer"] == first][exact] for frame in (rows, expected))
    pd.testing.assert_frame_equal(left, right)


def test_fp8_experts_are_found_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own module; its kernels need a GPU, so a plain product stands in for them."""

    def compute(
        experts: Any, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.zeros_like(rows)
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            gate, up = (rows[token] @ experts.gate_up_proj[expert].float().mT).chunk(2, dim=-1)
            inner = experts.act_fn(gate) * up
            returned = inner @ experts.down_proj[expert].float().mT
            output.index_add_(0, token, returned * weights[token, slot, None])
        return output

    mapping = finegrained_fp8.FP8ExpertsInterface._global_mapping
    monkeypatch.setitem(mapping, "own_kernel", compute)
    model, plain = (build_model("mixtral", intermediate_size=128) for _ in range(2))
    skeleton = build_model("mixtral", intermediate_size=128)
    nn.Module.to(skeleton, "meta")
    finegrained_fp8.replace_with_fp8_linear(skeleton, quantization_config=FineGrainedFP8Config())
    assert find_moe_layers(skeleton) == find_moe_layers(model)
    model.config._experts_implementation = "own_kernel"
    for layer in find_moe_layers(model):
        experts: Any = skeleton.get_submodule(layer.experts_path)
        assert type(experts).__name__ == "FP8Experts"
        experts.to_empty(device="cpu")
        original = dict(model.get_submodule(layer.experts_path).named_parameters())
        with torch.no_grad():
            for name, parameter in original.items():
                # The plain model needs the same rounding to 8 bits.
                rounded = parameter.to(torch.float8_e4m3fn)
                experts.get_parameter(name).copy_(rounded)
                plain.get_submodule(layer.experts_path).get_parameter(name).copy_(rounded)
        experts.config = model.config
        model.set_submodule(layer.experts_path, experts)
    rows, expected = record(model), record(plain)
    exact = [name for name in rows if name != "weight"]
    pd.testing.assert_frame_equal(rows[exact], expected[exact])


MXFP4_BLOCK = 32
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return MXFP4 as floats: two of 4 bits per byte, the low half first, times a power of two.

    By the specification of the Open Compute Project, and not by transformers' code.

    Args:
        blocks: # (num_experts, output, num_blocks, 16)
        scales: # (num_experts, output, num_blocks)

    Returns:
        # (num_experts, input, output)
    """
    values = torch.tensor([*FP4, *(-value for value in FP4)])
    pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1)
    scaled = pairs.flatten(-2) * torch.exp2(scales.float() - 127).unsqueeze(-1)
    return scaled.flatten(-2).mT


@pytest.fixture(scope="module")
def mxfp4_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny gpt-oss whose experts are stored like those of the released models."""
    folder = tmp_path_factory.mktemp("mxfp4")
    build_model("gpt_oss", intermediate_size=64).bfloat16().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(8)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_inputs, num_outputs = weights.pop(name).shape
        shape = (num_experts, num_outputs, num_inputs // MXFP4_BLOCK)
        blocks = torch.randint(0, 256, (*shape, MXFP4_BLOCK // 2), generator=generator)
        weights[f"{name}_blocks"] = blocks.to(torch.uint8)
        scales = torch.randint(121, 125, shape, generator=generator)
        weights[f"{name}_scales"] = scales.to(torch.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return Checkpoint(folder=folder, name="tiny-mxfp4", revision=None)


def test_an_mxfp4_checkpoint_is_dequantized_whatever_kernels_there_are(
    mxfp4_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU transformers does so anyway; with one and its kernels, only on request."""
    seen = []

    def watch(quantizer: Mxfp4HfQuantizer, *_: object, **__: object) -> None:
        seen.append(quantizer.quantization_config.dequantize)

    monkeypatch.setattr(Mxfp4HfQuantizer, "validate_environment", watch)
    config = load_config(mxfp4_checkpoint, trust_remote_code=False)
    assert find_method(config) == "mxfp4"
    model = load_model(
        mxfp4_checkpoint, config, auto_class=find_auto_class(config), device_map={"": "cpu"}
    )
    assert seen == [True]
    stored = load_file(mxfp4_checkpoint.folder / "model.safetensors")
    reference = build_model("gpt_oss", intermediate_size=64)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16())
    for layer in find_moe_layers(model):
        experts = model.get_submodule(layer.experts_path)
        for name in ("gate_up_proj", "down_proj"):
            path = f"{layer.experts_path}.{name}"
            decoded = decode(stored[f"{path}_blocks"], stored[f"{path}_scales"])
            assert torch.equal(experts.get_parameter(name).float(), decoded)
            with torch.no_grad():
                reference.get_parameter(path).copy_(decoded)
    pd.testing.assert_frame_equal(record(model.float()), record(reference))


def test_quantization_is_named_the_same_before_and_after_loading() -> None:
    """Before loading it is a dict from config.json, afterwards an object with another spelling."""
    config = build_config("mixtral")
    config.quantization_config = {"quant_method": "fp8"}
    assert find_method(config) == "fp8"
    config.quantization_config = FineGrainedFP8Config()
    assert find_method(config) == "fp8"
    del config.quantization_config
    assert find_method(config) is None
