"""The format of quantized files in words; junk in config.json is passed over."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import FineGrainedFP8Config, LlavaConfig, MixtralConfig, PreTrainedConfig

from moetool.catalogue.published import read_published_config
from moetool.checkpoint.stated.packing import read_packing
from moetool.checkpoint.stated.quantization import find_method, find_stated, name_quantization

WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
STATED: dict[str, dict[str, Any]] = {
    "fp8, blocks of 128 x 128": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "gptq, 4 bits, groups of 128": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "gptq, 3 bits": {"quant_method": "gptq", "bits": 3, "group_size": -1},
    "awq, 4 bits, groups of 64": {"quant_method": "awq", "bits": 4, "group_size": 64},
    "bitsandbytes, nf4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
    },
    "bitsandbytes, int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "compressed-tensors, pack-quantized, int4, groups of 32": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": WEIGHTS, "targets": ["Linear"]}},
    },
    "compressed-tensors, mixed-precision, int4, groups of 32, float8": {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "group_0": {"weights": WEIGHTS},
            "group_1": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
            "group_2": {"weights": None},
        },
    },
    "modelopt, nvfp4, groups of 16": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
    },
    "quanto, int4": {"quant_method": "quanto", "weights": "int4"},
    "aqlm, codebooks 1 x 16 bits": {
        "quant_method": "aqlm",
        "num_codebooks": 1,
        "nbits_per_codebook": 16,
    },
    "unnamed method, 4 bits": {"bits": 4},
}


@pytest.mark.parametrize("words", STATED)
def test_a_statement_is_put_into_words(words: str) -> None:
    assert name_quantization({"quantization_config": STATED[words]}) == words
    nested = {"text_config": {"quantization_config": STATED[words]}}
    assert name_quantization(nested) == words


def test_mlx_states_it_under_another_name() -> None:
    stated = {"quantization": {"group_size": 64, "bits": 4, "model.layers.0": {"bits": 8}}}

    assert name_quantization(stated) == "mlx, 4 bits, groups of 64"


@pytest.mark.parametrize("unused", [{}, {"quant_algo": None, "kv_cache_quant_algo": None}])
def test_fields_without_a_value_state_nothing(unused: dict[str, object]) -> None:
    """Every reader passes over them, to the field that does state something."""
    stated = {"quant_method": "awq", "bits": 4, "group_size": 128}
    config = {"quantization": unused, "text_config": {"quantization_config": stated}}

    assert find_stated(config) == stated
    assert find_method(config) == "awq"
    assert name_quantization(config) == "awq, 4 bits, groups of 128"
    assert read_packing(config).layouts == ((4, 128),)
    assert not find_stated({"quantization": unused})
    assert read_packing({"quantization": unused}).layouts == ()


def test_configurations_of_transformers_are_read_as_well() -> None:
    config = MixtralConfig()
    assert find_stated(config) == {}
    assert find_method(config) is None
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert find_method(config) == "gptq"
    # What transformers keeps once weights are loaded.
    config.quantization_config = FineGrainedFP8Config()
    assert find_method(config) == "fp8"


def test_quantization_of_the_text_model_within_is_found() -> None:
    text_config = {"model_type": "mixtral", "quantization_config": {"quant_method": "gptq"}}
    config = LlavaConfig(text_config=text_config)

    assert find_method(config) == "gptq"


def test_published_statements_are_read() -> None:
    assert name_quantization(read_published_config("deepseek-v3")) == "fp8, blocks of 128 x 128"
    assert name_quantization(read_published_config("kimi-k2.5")) == (
        "compressed-tensors, pack-quantized, int4, groups of 32"
    )
    assert name_quantization(read_published_config("mixtral-8x7b")) is None


@pytest.mark.parametrize("stated", [None, {}, [], "fp8", 8, [{"quant_method": "fp8"}]])
def test_what_is_no_statement_is_none(stated: object) -> None:
    assert name_quantization({"quantization_config": stated, "text_config": stated}) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quant_method": "a" * 10_000}, "unnamed method"),
        ({"quant_method": "two\nlines"}, "unnamed method"),
        ({"quant_method": ["fp8"]}, "unnamed method"),
        ({"bits": 10**5000}, "fp8"),
        ({"bits": True}, "fp8"),
        ({"weight_block_size": [10**5000, 128]}, "fp8"),
        ({"weight_block_size": ["a", {}]}, "fp8"),
        ({"weight_block_size": [128]}, "fp8"),
        ({"load_in_4bit": "yes"}, "fp8"),
        ({"config_groups": {"group_0": [1]}}, "fp8"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": {}, "type": []}}}}, "fp8"),
    ],
)
def test_junk_is_passed_over(changed: dict[str, object], words: str) -> None:
    stated = {"quant_method": "fp8", **changed}

    assert name_quantization({"quantization_config": stated}) == words


junk: st.SearchStrategy[object] = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | (
            st.lists(junk, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "quant_method",
                        "bits",
                        "group_size",
                        "weight_block_size",
                        "load_in_4bit",
                        "bnb_4bit_quant_type",
                        "config_groups",
                        "weights",
                        "num_bits",
                        "num_codebooks",
                    ]
                ),
                junk,
                max_size=5,
            )
        )
    )
)


@given(junk, junk)
def test_nothing_that_is_stated_ends_in_an_error(stated: object, nested: object) -> None:
    words = name_quantization({"quantization_config": stated, "text_config": nested})

    assert words is None or (words and words.isprintable() and len(words) < 1000)


def test_a_configuration_of_several_text_models_states_none_for_them() -> None:
    class Several:
        def get_text_config(self) -> object:
            raise ValueError("multiple valid text configs")

    assert find_method(cast("PreTrainedConfig", Several())) is None
