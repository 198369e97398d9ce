"""Caches and attention that a model can't run with, refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import cache_utils

from moetool.errors import UsageError
from moetool.memory.scenario import CacheDtype, Scenario
from tests.memory.saved_configs import make_builder, save_config

SIZES: dict[str, Any] = {"num_prompt_tokens": 8, "num_new_tokens": 2, "dtype": "bfloat16"}
INT4, FLASH = {"cache_dtype": "int4"}, {"attention": "flash_attention_2"}


@pytest.mark.parametrize(
    ("family", "options", "words", "hint"),
    [
        ("mixtral", INT4, "layers of the kind DynamicSlidingWindowLayer", "--cache offloaded"),
        ("qwen3_next", INT4, "layers of the kind LinearAttentionLayer", "--cache dynamic"),
        ("switch_transformers", INT4, "has no quantized cache for", "--cache dynamic"),
        ("olmoe", {**FLASH, "dtype": "float32"}, "loaded in float32", "--dtype bfloat16"),
        ("llama4_text", FLASH, "can't run with 'flash_attention_2' attention", "--attention"),
    ],
)
def test_a_model_is_refused_what_transformers_refuses_it(
    family: str, options: dict[str, Any], words: str, hint: str, tmp_path: Path
) -> None:
    builder = make_builder(save_config(family, tmp_path))
    with pytest.raises(UsageError) as caught:
        builder.build(Scenario(**{**SIZES, **options}))
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_transformers_without_fp8_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cache_utils, "Fp8QuantizedLayer", raising=False)
    builder = make_builder(save_config("olmoe", tmp_path))
    with pytest.raises(UsageError, match="has no cache in fp8") as caught:
        builder.build(Scenario(**SIZES, cache_dtype=CacheDtype.FP8))
    assert "int8" in caught.value.hint
    assert builder.build(Scenario(**SIZES, cache_dtype=CacheDtype.INT8))


def test_flash_attention_needs_no_package_here(tmp_path: Path) -> None:
    builder = make_builder(save_config("olmoe", tmp_path))
    config = builder.build(Scenario(**{**SIZES, **FLASH})).config
    assert config._attn_implementation == "flash_attention_2"
