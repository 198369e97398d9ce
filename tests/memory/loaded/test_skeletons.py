"""Models as a scenario loads them, and what is refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from moetool.anatomy.config_fields import find_context
from moetool.errors import InputError, MoetoolError, UsageError
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.scenario import Scenario, Task
from moetool.quantizing.kinds import Quantization
from tests.families.tiny.configs import build_config
from tests.memory.saved_configs import make_builder, save_config

SCENARIO = Scenario(batch_size=1, num_prompt_tokens=8, num_new_tokens=2, dtype="float32")


def count_parameters(builder: SkeletonBuilder, scenario: Scenario = SCENARIO) -> int:
    return sum(parameter.numel() for parameter in builder.build(scenario).parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_in_the_dtype_that_is_named(dtype: str, tmp_path: Path) -> None:
    builder = make_builder(save_config("mixtral", tmp_path, dtype="float16"))
    skeleton = builder.build(replace(SCENARIO, dtype=dtype))
    assert {parameter.dtype for parameter in skeleton.parameters()} == {getattr(torch, dtype)}
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert not skeleton.training


def test_by_default_the_dtype_is_that_of_the_configuration(tmp_path: Path) -> None:
    builder = make_builder(save_config("mixtral", tmp_path, dtype="float16"))
    skeleton = builder.build(replace(SCENARIO, dtype="auto"))
    assert {parameter.dtype for parameter in skeleton.parameters()} == {torch.float16}


def test_what_is_done_to_one_model_is_not_done_to_the_next(tmp_path: Path) -> None:
    builder = make_builder(save_config("mixtral", tmp_path))
    before = count_parameters(builder)
    quantized = builder.build(SCENARIO.quantized(Quantization.INT8))
    quantized.config.vocab_size = 1
    quantized.get_parameter("model.embed_tokens.weight").requires_grad_(False)
    plain = builder.build(SCENARIO)
    assert plain.config.vocab_size > 1
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert count_parameters(builder) == before


def refuse(
    model: str, scenario: Scenario, *, error: str, hint: str, kind: type[MoetoolError] = UsageError
) -> None:
    with pytest.raises(kind, match=error) as caught:
        make_builder(model).build(scenario)
    assert hint in caught.value.hint


def test_a_dtype_that_is_not_stated_is_refused(tmp_path: Path) -> None:
    model = save_config("mixtral", tmp_path)
    config = json.loads(Path(model).read_text(encoding="utf-8"))
    assert config["dtype"] is None
    auto = replace(SCENARIO, dtype="auto")
    refuse(model, auto, error="doesn't say which dtype", hint="--dtype")


def test_attention_that_a_family_does_not_have_is_refused(tmp_path: Path) -> None:
    model = save_config("gpt_oss", tmp_path)
    sdpa = replace(SCENARIO, attention="sdpa")
    refuse(model, sdpa, error=r"can't run with 'sdpa' attention\.", hint="Leave out --attention")


def test_experts_that_a_family_does_not_have_are_refused(tmp_path: Path) -> None:
    grouped = replace(SCENARIO, experts_implementation="grouped_mm")
    model = save_config("switch_transformers", tmp_path)
    refuse(
        model,
        grouped,
        error=r"can't run with 'grouped_mm' experts\.",
        hint="Leave out --experts-implementation",
    )


def test_what_is_chosen_of_attention_and_experts_is_set(tmp_path: Path) -> None:
    builder = make_builder(save_config("mixtral", tmp_path))
    chosen = replace(SCENARIO, attention="eager", experts_implementation="batched_mm")
    config = builder.build(chosen).config
    assert config._attn_implementation == "eager"
    assert config._experts_implementation == "batched_mm"


def test_only_a_model_that_generates_is_asked_to(tmp_path: Path) -> None:
    model = save_config("openai_privacy_filter", tmp_path)
    refuse(model, SCENARIO, error="doesn't generate text", hint="--task forward")
    forward = replace(SCENARIO, task=Task.FORWARD, num_new_tokens=0)
    assert count_parameters(make_builder(model), forward) > 0


def test_weights_that_are_quantized_already_are_not_quantized_again() -> None:
    nf4 = replace(SCENARIO, dtype="auto", quantization=Quantization.NF4)
    refuse("qwen3-30b-a3b-fp8", nf4, error=r"quantized already \(fp8\)", hint="--quantization")


@pytest.mark.parametrize(
    "fields", [{"num_hidden_layers": "many"}, {"hidden_size": -1}, {"num_attention_heads": 0}]
)
def test_a_configuration_of_no_model_is_refused(fields: Mapping[str, Any], tmp_path: Path) -> None:
    model = save_config("mixtral", tmp_path, **fields)
    refuse(model, SCENARIO, error=r"config\.json", hint="config.json", kind=InputError)


def test_a_scenario_may_fill_the_context_and_no_more(tmp_path: Path) -> None:
    builder = make_builder(save_config("mixtral", tmp_path, max_position_embeddings=10))
    assert find_context(builder.make_config()) == 10
    builder.refuse_scenario(SCENARIO)
    with pytest.raises(
        UsageError, match=r"(?m)9 prompt and 2 new tokens .* 10 tokens\.$"
    ) as caught:
        builder.refuse_scenario(replace(SCENARIO, num_prompt_tokens=9))
    assert "--prompt-tokens" in caught.value.hint


def test_positions_that_are_relative_to_one_another_have_no_end(tmp_path: Path) -> None:
    fields = {"max_position_embeddings": 10}
    builder = make_builder(save_config("switch_transformers", tmp_path, **fields))
    builder.refuse_scenario(replace(SCENARIO, num_prompt_tokens=1000))


def test_a_context_that_nothing_is_said_of_is_unknown() -> None:
    assert find_context(build_config("mixtral")) == 128
    assert find_context(PreTrainedConfig()) is None


def test_the_towers_of_a_model_that_generates_with_them_are_loaded(tmp_path: Path) -> None:
    architectures = ["Gemma4ForConditionalGeneration"]
    path = save_config("gemma4", tmp_path, architectures=architectures)
    skeleton = make_builder(path).build(SCENARIO)
    assert type(skeleton).__name__ == architectures[0]
    parts = {name.split(".")[1] for name, _ in skeleton.named_parameters()}
    assert {"language_model", "vision_tower", "audio_tower"} <= parts


def test_without_a_class_named_the_one_for_the_whole_configuration_is_loaded(
    tmp_path: Path,
) -> None:
    """transformers' class for text takes the configuration of the text model alone."""
    unnamed = make_builder(save_config("llama4", tmp_path, architectures=None))
    skeleton = unnamed.build(SCENARIO)
    assert type(skeleton).__name__ == "Llama4ForConditionalGeneration"
    assert not skeleton.training
    named = make_builder(
        save_config("llama4", tmp_path, architectures=["Llama4ForConditionalGeneration"])
    )
    assert count_parameters(unnamed) == count_parameters(named)
