"""Models that can't be quantized are refused before loading, in one sentence."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import PreTrainedModel

from moetool import load_quantized
from moetool.errors import DenseModelError, InputError, MoetoolError, OutOfMemoryError, UsageError
from moetool.quantized.kinds import Quantization
from moetool.quantizing.checks import check_quantizable
from moetool.quantizing.choice import QuantizationChoice, choose_quantization
from moetool.tracing import quantization
from moetool.tracing.options import TraceOptions
from tests.tiny_models import build_model

NF4 = QuantizationChoice(Quantization.NF4)
CPU = {"": torch.device("cpu")}
WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16}


def check(model: PreTrainedModel, choice: QuantizationChoice = NF4, **options: Any) -> None:
    places = options.pop("device_map", CPU)
    check_quantizable(model.config, model, choice, name="tiny", device_map=places)


@pytest.mark.parametrize("quantization", [None, "none"])
def test_without_a_format_nothing_is_chosen_and_other_options_are_refused(
    quantization: str | None,
) -> None:
    assert choose_quantization(quantization) is None
    with pytest.raises(UsageError, match="nothing is quantized"):
        choose_quantization(quantization, double_quantization=True)
    with pytest.raises(UsageError, match="nothing is quantized"):
        choose_quantization(quantization, quantize_experts=False)


def test_int8_has_no_scales_to_quantize() -> None:
    with pytest.raises(UsageError, match="int8 has one scale for each row"):
        choose_quantization("int8", double_quantization=True)
    with pytest.raises(UsageError, match="int3"):
        choose_quantization("int3")


def test_a_choice_in_words() -> None:
    choice = choose_quantization("fp4", double_quantization=True, quantize_experts=False)
    assert str(choice) == "fp4, double quantization, without experts"


def test_processes_that_share_a_model_are_refused() -> None:
    with pytest.raises(UsageError, match="Processes can't share a model that bitsandbytes"):
        TraceOptions(quantization=NF4, parallel="expert")  # type: ignore[arg-type]


def test_a_fitting_model_is_accepted() -> None:
    check(build_model("mixtral", **WIDE))


def test_quantized_weights_are_not_quantized_again() -> None:
    model = build_model("mixtral", **WIDE)
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(InputError, match=r"tiny are quantized already \(fp8\)"):
        check(model)


def test_a_dense_model_has_no_experts() -> None:
    with pytest.raises(DenseModelError, match="no routed experts to quantize"):
        check(build_model("llama", **WIDE))


def test_an_odd_width_is_refused_in_4_bits_only() -> None:
    model = build_model("qwen3_moe", **WIDE, moe_intermediate_size=35)
    with pytest.raises(UsageError, match="down_proj has 35 inputs, an odd number"):
        check(model)
    check(model, QuantizationChoice(Quantization.INT8))


def test_widths_that_kernels_for_the_cpu_compute_wrongly_are_refused_there() -> None:
    model = build_model("mixtral", **{**WIDE, "head_dim": 8})
    with pytest.raises(UsageError, match="need inputs in multiples of 64 and outputs") as caught:
        check(model)
    assert caught.value.facts[0] == "seen: model.layers.0.self_attn.k_proj (16 x 64)"
    check(model, QuantizationChoice(Quantization.INT8))


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("mixtral", **WIDE)
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(UsageError, match=r"bitsandbytes .* has no kernels for cpu here"):
        check(model)
    with pytest.raises(UsageError, match="spread over cuda and cpu"):
        check(model, device_map={"model": "cuda:0", "lm_head": "cpu"})


def test_too_little_memory_is_known_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_available_bytes", lambda: 1000)
    with pytest.raises(OutOfMemoryError, match="cpu has 1000 bytes free"):
        load_quantized("demo", device="cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "none"}, "in no format"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
        ({"dtype": "int2"}, "dtype"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(MoetoolError, match=words):
        load_quantized("demo", **options)
