"""llama.cpp's buffers: the formulas give what the real one reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moetool.memory.serving.geometry import read_geometry
from moetool.memory.serving.ggml.compute_buffer import count_compute_bytes
from moetool.memory.serving.ggml.families import ARCHITECTURES, read_sizes
from moetool.memory.serving.ggml.gguf_buffers import (
    count_cache_bytes,
    count_logits_bytes,
    count_weights_bytes,
    list_gpu_weights,
    list_tensor_sizes,
    place_layers,
)
from moetool.memory.serving.ggml.sizes import count_output_bytes

RECEIPTS = (
    Path(__file__).parents[3] / "benchmarks" / "memory" / "measured" / "llama_cpp_buffers.jsonl"
)
LINES = [json.loads(line) for line in RECEIPTS.read_text().splitlines()]
CONFIGS = sorted({json.dumps(line["config"]) for line in LINES})
# The types of matrices, and of experts where theirs is another.
TYPES = {"f32": ("f32",), "f16": ("f16",), "q8_0": ("q8_0",), "mxfp4": ("bf16", "mxfp4")}
# Each printed size has two decimals, and two caches print two sizes.
PRINTED_MIB = 0.011
ROUNDED_MIB = 0.0051


@pytest.mark.parametrize("config", CONFIGS, ids=lambda text: json.loads(text)["model_type"])
def test_buffers_are_those_that_llama_cpp_reports(config: str) -> None:
    lines = [line for line in LINES if line["config"] == json.loads(config)]
    skeleton = build(lines[0]["config"])
    geometry = read_geometry(skeleton)
    sizes = read_sizes(skeleton.config, geometry)
    assert sizes is not None
    vocab_size = lines[0]["config"].get("vocab_size", 32000)
    for line in lines:
        found: dict[str, float] = {}
        for name, size in line["mib"].items():
            kind = name.partition(" ")[0]
            # On the CPU, experts in mxfp4 are there once more, repacked.
            if not name.endswith("_REPACK"):
                found[kind] = found.get(kind, 0) + size
        expected = {
            "model": count_weights_bytes(skeleton, *TYPES[line["tensor_type"]]),
            "KV": count_cache_bytes(
                geometry,
                context=line["context"],
                num_sequences=line["sequences"],
                cache_type=line["cache_type"],
                ubatch=line["ubatch"],
            ),
            "output": count_output_bytes(vocab_size, num_sequences=line["sequences"]),
        }
        for kind, size in expected.items():
            printed = pytest.approx(found[kind], rel=0.001, abs=PRINTED_MIB)
            assert size / 2**20 == printed, (kind, line)
        compute_bytes = count_compute_bytes(
            sizes,
            context=line["context"],
            ubatch=line["ubatch"],
            num_sequences=line["sequences"],
            has_flash_attention=line["flash_attention"],
            has_quantized_cache=line["cache_type"] == "q8_0",
        )
        assert compute_bytes / 2**20 == pytest.approx(found["compute"], abs=ROUNDED_MIB), line
        least = count_logits_bytes(vocab_size, context=line["context"], ubatch=line["ubatch"])
        assert least <= compute_bytes


def test_receipts_have_every_kind_of_cache() -> None:
    models = {line["model"] for line in LINES}
    assert models == {*ARCHITECTURES, "demo"}
    kinds = {(line["cache_type"], line["flash_attention"]) for line in LINES}
    assert kinds == {("f16", True), ("f16", False), ("q8_0", True)}
    assert len(LINES) == 189


def test_layers_are_divided_between_gpus_evenly() -> None:
    assert place_layers(7, num_gpus=2) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert place_layers(4, num_gpus=3) == [0, 0, 1, 1, 2]
    skeleton = build(next(line["config"] for line in LINES if line["model"] == "mixtral"))
    one, two = (list_gpu_weights(skeleton, "f16", num_gpus=number) for number in (1, 2))
    assert sum(two) == one[0]
    first = [
        size
        for path, size in list_tensor_sizes(skeleton, "f16")
        if any(f".layers.{number}." in path for number in range(3))
    ]
    assert two[0] == pytest.approx(sum(first), abs=32 * len(first))


def build(fields: dict[str, Any]) -> PreTrainedModel:
    known = {key: value for key, value in fields.items() if key != "transformers_version"}
    config = AutoConfig.for_model(known.pop("model_type"), **known)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
