"""Files that libraries quantized count as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations import finegrained_fp8
from transformers.utils.quantization_config import FineGrainedFP8Config

from moetool.anatomy.headers.table import HeaderTable, count_headers
from moetool.checkpoint.headers.local_headers import read_local_headers
from tests.anatomy.header_files import make_headers
from tests.tiny_models import build_model


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as it is before anything is quantized."""
    folder = tmp_path_factory.mktemp("dense")
    build_model("qwen2_moe").bfloat16().save_pretrained(folder)
    return folder


def read(folder: Path) -> HeaderTable:
    headers = read_local_headers(folder)
    assert headers is not None
    return count_headers(headers, json.loads((folder / "config.json").read_text("utf-8")))


BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nested": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "kept in bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_what_bitsandbytes_saves_counts_as_before(name: str, dense: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        dense,
        quantization_config=BitsAndBytesConfig(**BITSANDBYTES[name]),
        device_map={"": "cpu"},
        dtype=torch.bfloat16,
    )
    model.save_pretrained(tmp_path)

    expected, found = read(dense).table, read(tmp_path)
    assert found.unknown is None
    assert found.table.count_components() == expected.count_components()
    assert any(group.reason.startswith("scales") for group in found.other_tensors)
    is_packed = any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters())
    assert is_packed == (name != "int8")


def test_what_transformers_quantizes_to_fp8_counts_as_before(dense: Path) -> None:
    """Its modules, linear layers and stacked experts, as they are saved."""
    skeleton = build_model("qwen2_moe").bfloat16()
    nn.Module.to(skeleton, "meta")
    config = FineGrainedFP8Config()
    finegrained_fp8.replace_with_fp8_linear(skeleton, quantization_config=config)
    tensors = {
        name: (dtype_name(tensor.dtype), list(tensor.shape))
        for name, tensor in skeleton.state_dict().items()
    }
    assert sum(dtype == "F8_E4M3" for dtype, _ in tensors.values()) >= 20

    stated = json.loads((dense / "config.json").read_text("utf-8"))
    found = count_headers(
        make_headers(tensors), {**stated, "quantization_config": config.to_dict()}
    )
    assert found.unknown is None
    assert found.table.count_components() == read(dense).table.count_components()


def dtype_name(dtype: torch.dtype) -> str:
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32", torch.bfloat16: "BF16"}
    return names[dtype]
