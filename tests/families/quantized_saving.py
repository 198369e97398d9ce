"""Check that a family's quantized checkpoint loads as if it were quantized while loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from moetool import RoutingRecorder
from moetool.checkpoint.files import Checkpoint
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.saving.save import save_quantized
from moetool.tracing.recording.calls import RecordedLayer
from tests.families.tiny.models import text_inputs
from tests.families.tiny.proof import recorded_layers, run

# Each differs from the others in what its checkpoint or its experts are like: matrices of single
# experts, rows of all experts, fused, transposed or interleaved ones, biases, no gates, tied stacks,
# Mamba, vision towers, parameters in float32, names that contain `weight`.
SAVED = {
    *("aria", "dbrx", "deepseek_v3", "diffusion_gemma", "gpt_oss", "granitemoe", "kimi_linear"),
    *("llama4_text", "mixtral", "nemotron_h", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe"),
    *("qwen4_exp_text", "zaya"),
}


def check_saving(
    loaded: PreTrainedModel, plain: PreTrainedModel, source: Path, choice: QuantizationChoice
) -> None:
    """Compare a model from quantized files with one that was quantized while it was loaded.

    Args:
        loaded: The model that was quantized while it was loaded.
        plain: A plain model of its class.
        source: The folder of the checkpoint.
        choice: The format of both.
    """
    folder = source.with_name(f"{source.name}-quantized")
    folder.mkdir()
    headers = read_local_headers(source)
    assert headers is not None
    checkpoint = Checkpoint(str(source), source, None)
    config = AutoConfig.from_pretrained(source)
    save_quantized(checkpoint, config, plain, headers, folder, choice=choice)
    loader: Any = type(plain)
    reloaded, report = loader.from_pretrained(folder, dtype=loaded.dtype, output_loading_info=True)
    assert not any(report.values()), report
    compare_tensors(reloaded.state_dict(), loaded.state_dict())
    (logits, routed), (again, routed_again) = (_record(model) for model in (loaded, reloaded))
    # Sums are in another order where a tensor has other strides.
    assert torch.allclose(logits, again, rtol=1e-6, atol=1e-6)
    assert len(routed) == len(routed_again) > 0
    for first, second in zip(routed, routed_again, strict=True):
        assert np.array_equal(first.experts, second.experts)
        assert np.allclose(first.weights, second.weights, rtol=1e-6, atol=1e-6)


def compare_tensors(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    """Compare all tensors bit by bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype is second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def _record(model: PreTrainedModel) -> tuple[torch.Tensor, list[RecordedLayer]]:
    """Return a model's logits, and the decisions of each layer."""
    modules: Any = model.modules()
    for module in modules:
        # On some CPUs this kernel refuses widths that tiny models have.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.inference_mode(), RoutingRecorder(model, allow_inexact=True) as recorder:
        output = run(model, dict(text_inputs(model)))
    return output, recorded_layers(recorder.calls)
