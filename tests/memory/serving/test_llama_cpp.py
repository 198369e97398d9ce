"""llama.cpp's buffers: the formulas give what the real one reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moetool.memory.serving.geometry import read_geometry
from moetool.memory.serving.llama_cpp import (
    count_cache_bytes,
    count_logits_bytes,
    count_output_bytes,
    count_weights_bytes,
)

RECEIPTS = (
    Path(__file__).parents[3] / "benchmarks" / "memory" / "measured" / "llama_cpp_buffers.jsonl"
)
LINES = [json.loads(line) for line in RECEIPTS.read_text().splitlines()]
MODELS = sorted({line["model"] for line in LINES})
# Each printed size has two decimals, and two caches print two sizes.
PRINTED_MIB = 0.011


@pytest.mark.parametrize("model", MODELS)
def test_buffers_are_those_that_llama_cpp_reports(model: str) -> None:
    lines = [line for line in LINES if line["model"] == model]
    skeleton = build(lines[0]["config"])
    geometry = read_geometry(skeleton)
    vocab_size = lines[0]["config"].get("vocab_size", 32000)
    for line in lines:
        found: dict[str, float] = {}
        for name, size in line["mib"].items():
            kind = name.partition(" ")[0]
            found[kind] = found.get(kind, 0) + size
        sizes = {
            "model": count_weights_bytes(skeleton, line["tensor_type"]),
            "KV": count_cache_bytes(
                geometry,
                context=line["context"],
                num_sequences=line["sequences"],
                cache_type=line["cache_type"],
                ubatch=line["ubatch"],
            ),
            "output": count_output_bytes(vocab_size, num_sequences=line["sequences"]),
        }
        for kind, size in sizes.items():
            expected = pytest.approx(found[kind], rel=0.001, abs=PRINTED_MIB)
            assert size / 2**20 == expected, (kind, line)
        least = count_logits_bytes(vocab_size, context=line["context"], ubatch=line["ubatch"])
        assert least / 2**20 < found["compute"]


def test_receipts_have_every_kind_of_cache() -> None:
    assert MODELS == ["deepseek_v3", "demo", "gpt_oss", "mixtral", "olmoe", "qwen3_moe"]
    assert {line["cache_type"] for line in LINES} == {"f16", "q8_0"}
    assert {line["flash_attention"] for line in LINES} == {True, False}


def build(fields: dict[str, Any]) -> PreTrainedModel:
    known = {key: value for key, value in fields.items() if key != "transformers_version"}
    config = AutoConfig.for_model(known.pop("model_type"), **known)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
