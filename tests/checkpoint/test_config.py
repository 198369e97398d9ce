"""A configuration decides what a model is, not how it is computed."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedConfig

from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config
from moetool.errors import InputError, UntraceableError


def make(**changes: Any) -> PreTrainedConfig:
    raw = {**read_published_config("mixtral-8x7b"), **changes}
    return make_config(raw, name="it", label="config.json", code=None, trust_remote_code=False)


@pytest.mark.parametrize("value", ["org/kernel", "flash_attention_2", "paged|org/kernel"])
def test_attention_named_in_a_configuration_is_not_run(value: str) -> None:
    config = make(attn_implementation=value, _attn_implementation=value)

    assert config._attn_implementation != value
    assert config.to_dict() == make().to_dict()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_local_experts": 10**12}, "num_local_experts is 1,000,000,000,000"),
        ({"hidden_size": -4096}, "hidden_size is -4,096"),
        ({"vocab_size": 2**50}, "vocab_size is"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1,000,000,000"),
        ({"hidden_size": "wide"}, "is not a usable mixtral configuration"),
        ({"hidden_size": None}, "is not a usable mixtral configuration"),
        ({"model_type": 7}, "names no model_type"),
    ],
)
def test_numbers_that_no_model_has_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=r"config\.json") as caught:
        make(**changes)

    assert sentence in caught.value.message


def test_code_of_its_own_needs_a_place_and_leave_to_run() -> None:
    raw = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    with pytest.raises(InputError, match="needs the Python code"):
        make_config(raw, name="it", label="config.json", code=".", trust_remote_code=False)
    with pytest.raises(UntraceableError, match="has no architecture 'own'"):
        make_config(raw, name="it", label="config.json", code=None, trust_remote_code=True)


def test_a_name_of_thousands_of_characters_is_cut() -> None:
    for code, kind in ((None, UntraceableError), (".", InputError)):
        raw = {"model_type": "é" * 5000, "auto_map": {"AutoConfig": "own.Config"}}
        with pytest.raises(kind) as caught:
            make_config(raw, name="it", label="config.json", code=code, trust_remote_code=False)
        assert len(caught.value.message) < 200
