"""Checkpoints with a config.json that other programs wrote: MLX, mergekit, TensorRT-LLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moetool.checkpoint.layouts.mergekit import read_expert_sources
from moetool.errors import InputError, UntraceableError
from moetool.inspection.inspect import inspect_model
from tests.checkpoint.layouts.saved import save_with_dcp
from tests.tiny_models import build_model

GROUP = 32


def quantize_as_mlx(folder: Path) -> int:
    """Save a Mixtral as MLX does, its routers in other bits; return its parameters."""
    model = build_model("mixtral")
    routers = [f"model.layers.{number}.mlp.gate" for number in range(3)]
    layouts = {name: {"group_size": GROUP, "bits": 8} for name in routers}
    stated = {"group_size": GROUP, "bits": 4, "mode": "affine", **layouts}
    config = {**model.config.to_dict(), "quantization": stated, "quantization_config": stated}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, tensor in model.state_dict().items():
        whole = name.replace("experts.", "switch_mlp.")
        if tensor.dim() < 2:
            tensors[whole] = tensor
            continue
        # Experts' stacks have no word for the weight in transformers.
        module = whole.removesuffix(".weight")
        bits = layouts.get(module, {"bits": 4})["bits"]
        *outer, inputs = tensor.shape
        packed = torch.zeros(*outer, inputs * bits // 32, dtype=torch.int32)
        tensors[f"{module}.weight"] = packed.view(torch.uint32)
        for part in ("scales", "biases"):
            tensors[f"{module}.{part}"] = torch.zeros(*outer, inputs // GROUP)
    save_file(tensors, folder / "model.safetensors")
    return sum(parameter.numel() for parameter in model.parameters())


def test_mlx_s_packed_words_are_counted_by_the_bits_and_groups_of_each_module(
    tmp_path: Path,
) -> None:
    expected = quantize_as_mlx(tmp_path)

    found = inspect_model(tmp_path)

    assert found.quantization == "mlx, 4 bits, affine, groups of 32"
    assert found.files is not None
    assert found.files.differences is not None
    assert [each.what for each in found.files.differences] == ["scales of quantized weights"]
    assert sum(row.file_params or 0 for row in found.rows) == expected
    assert found.parameters is not None
    assert found.parameters.total == expected
    assert set(found.files.dtype_bytes) == {"uint32", "float32"}


def test_a_distributed_checkpoint_is_compared_with_the_model_of_its_config_json(
    tmp_path: Path,
) -> None:
    model = build_model("mixtral")
    save_with_dcp({"model": model.state_dict()}, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))

    found = inspect_model(tmp_path)

    assert found.source == "skeleton and headers"
    assert found.files is not None
    assert found.files.differences == ()
    assert found.top_k == 2


MERGED = """
base_model: org/base
gate_mode: hidden
experts:
  - source_model: org/maths
    positive_prompts: ["1 + 1"]
  - source_model: org/poems
shared_experts:
  - source_model: org/base
"""


def test_mergekit_s_file_shows_which_model_each_expert_was(tmp_path: Path) -> None:
    build_model("mixtral", num_local_experts=2).save_pretrained(tmp_path)
    (tmp_path / "mergekit_moe_config.yml").write_text(MERGED)

    found = inspect_model(tmp_path)

    assert found.expert_sources is not None
    assert found.expert_sources.experts == ("org/maths", "org/poems")
    assert found.expert_sources.shared_experts == ("org/base",)
    assert found.expert_sources.base == "org/base"
    assert not any("mergekit" in note for note in found.notes)
    assert inspect_model(tmp_path, source="headers").expert_sources == found.expert_sources


def test_a_file_of_mergekit_with_another_number_of_experts_is_mentioned(tmp_path: Path) -> None:
    build_model("mixtral").save_pretrained(tmp_path)
    (tmp_path / "mergekit_moe_config.yml").write_text(MERGED)

    notes = inspect_model(tmp_path).notes

    assert any("lists 2 models as experts, and a layer has 8" in note for note in notes)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "experts: 7",
        "experts: [7]",
        "experts: [{}]",
        "experts: [{source_model: [1]}]",
        "experts: [",
        "- 1",
        "!!python/object/apply:os.mkdir [made]",
        "[" * 5_000,
        "a: &a [x]\nb: &b [*a, *a]\nexperts: *b",
        "x: " + "y" * 300_000,
        "experts: [{source_model: \x00}]",
    ],
)
def test_an_odd_file_of_mergekit_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mergekit_moe_config.yml").write_text(content)

    with pytest.raises(InputError) as caught:
        read_expert_sources(tmp_path)
    assert "does not list the experts" in caught.value.message
    assert not any("\n" in line for line in caught.value.facts)


def test_an_engine_of_tensorrt_llm_is_named(tmp_path: Path) -> None:
    config: dict[str, Any] = {"version": "1", "pretrained_config": {"architecture": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "rank0.engine").touch()

    with pytest.raises(UntraceableError, match="engine"):
        inspect_model(tmp_path)
