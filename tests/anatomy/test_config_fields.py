"""Each fact is found under every name that a published configuration gives it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

from moetool.anatomy.config_fields import (
    find_context,
    find_num_mtp_layers,
    find_num_shared_experts,
    find_position_limit,
    is_tied,
    read_count,
    read_text_config,
)
from moetool.catalogue.published import read_published_config
from moetool.tracing.prompts.tokens import read_context_tokens


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "4", None, [4]])
def test_only_positive_whole_numbers_are_counts(value: object) -> None:
    fields = {"first": value, "second": 3}

    assert read_count(fields, "first", "second") == 3
    assert read_count(fields, "first") is None


@pytest.mark.parametrize("name", ["max_seq_len", "n_positions", "seq_length"])
def test_context_is_found_under_older_names(name: str) -> None:
    fields: dict[str, Any] = {name: 640}
    config = PreTrainedConfig(**fields)

    assert find_context(config) == 640


@pytest.mark.parametrize(
    ("model_type", "field"), [("switch_transformers", "n_positions"), ("bloom", "seq_length")]
)
def test_length_of_training_sequences_limits_no_prompt(model_type: str, field: str) -> None:
    config = CONFIG_MAPPING[model_type].from_dict({"model_type": model_type, field: 512})

    assert find_context(config) == 512
    assert find_position_limit(config) is None


@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("mixtral", "max_position_embeddings"),
        ("dbrx", "max_seq_len"),
        ("mpt", "max_seq_len"),
        ("gpt2", "n_positions"),
    ],
)
def test_context_that_the_code_uses_limits_prompts(model_type: str, field: str) -> None:
    config = CONFIG_MAPPING[model_type].from_dict({"model_type": model_type, field: 512})

    assert find_context(config) == find_position_limit(config) == 512
    assert read_context_tokens(config) == 512


def test_shared_experts_are_read_alike_by_both_derivations() -> None:
    # Hunyuan has a name that no other family uses.
    raw = read_published_config("hunyuan-a13b")
    assert raw["num_shared_expert"] == 1
    config = CONFIG_MAPPING["hunyuan_v1_moe"].from_dict(dict(raw))

    assert find_num_shared_experts(raw) == find_num_shared_experts(config) == 1


@pytest.mark.parametrize(
    "name",
    [
        "n_shared_experts",
        "num_shared_experts",
        "moe_num_shared_experts",
        "num_shared_expert",
    ],
)
def test_shared_experts_have_four_names(name: str) -> None:
    assert find_num_shared_experts({name: 2}) == 2
    assert find_num_shared_experts({"text_config": {name: [1, 2]}}) == 2
    assert find_num_shared_experts({name: 0}) is None


@pytest.mark.parametrize(
    ("published", "count"),
    [
        ("deepseek-v3", 1),
        ("minimax-m2", 3),
        ("qwen3.5-35b-a3b", 1),
        ("mixtral-8x7b", None),
    ],
)
def test_layers_that_predict_further_tokens_are_counted(published: str, count: int | None) -> None:
    assert find_num_mtp_layers(read_published_config(published)) == count


def test_inkling_states_such_layers_in_its_text_config() -> None:
    assert find_num_mtp_layers({"text_config": {"num_mtp_layers": 2}}) == 2


def test_the_text_model_may_lie_two_levels_deep() -> None:
    inner = {"hidden_size": 8}

    assert read_text_config({"thinker_config": {"text_config": inner}}) is inner
    assert read_text_config(inner) is inner


def test_tied_embeddings_of_the_whole_model_count_first() -> None:
    assert is_tied(
        {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    ) is (False)
    assert is_tied({"text_config": {"tie_word_embeddings": True}}) is True
    assert is_tied({}) is None
