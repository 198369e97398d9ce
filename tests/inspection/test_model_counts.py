"""The counts that go into a trace are those of `inspect`, and counting them never fails."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from moetool import inspect_model
from moetool.anatomy.skeleton.build import build_skeleton
from moetool.inspection.result import Inspection
from moetool.inspection.sources import from_skeleton
from moetool.inspection.sources.from_module import count_module
from moetool.inspection.sources.from_skeleton import count_checkpoint, count_model
from moetool.simulation.flops.flops import CantSimulate, OperationBudget, count_flops
from moetool.trace.model_counts import ModelCounts
from tests.families.tiny.configs import build_config as build_family_config
from tests.tiny_models import DENSE_FAMILY, FAMILIES, build_config, build_model


def list_counts(inspected: Inspection) -> ModelCounts:
    assert inspected.parameters is not None
    flops = inspected.flops
    return ModelCounts(
        total_parameters=inspected.parameters.total,
        active_parameters=inspected.parameters.to_dict()["active"]["all"],
        flops_per_token=flops.prefill if flops else None,
        flops_prompt_tokens=flops.num_prompt_tokens if flops else None,
        dense_flops_per_token=flops.dense_prefill if flops else None,
    )


@pytest.mark.parametrize("family", [DENSE_FAMILY, *FAMILIES])
def test_a_model_in_memory_counts_as_it_is_inspected(family: str) -> None:
    model = build_model(family)
    before = copy.deepcopy(model.config.to_dict())
    counts, notes = count_module(model)

    inspected = inspect_model(model)
    assert counts == list_counts(inspected)
    assert notes == ()
    assert inspected.flops is not None
    assert counts.flops_ratio == inspected.flops.prefill_ratio
    assert inspected.parameters is not None
    assert counts.active_share == inspected.parameters.sparsity
    assert model.config.to_dict() == before
    assert not any(parameter.is_meta for parameter in model.parameters())


# Llama 4 has towers that its language model lacks; Switch's experts look up what was chosen.
CHECKPOINTS = ("llama4", "switch_transformers", "longcat_flash")


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_a_checkpoint_counts_as_a_whole(family: str, tmp_path: Path) -> None:
    config = build_family_config(family)
    config.save_pretrained(tmp_path)
    counts, notes = count_checkpoint(config, build_skeleton(config))

    inspected = inspect_model(tmp_path / "config.json")
    assert counts == list_counts(inspected)
    if counts.flops_per_token is None:
        assert [note for note in notes if note.startswith("FLOPs unknown: ")] == [
            note for note in inspected.notes if note.startswith("FLOPs unknown: ")
        ]
    assert (counts.active_parameters is None) == any("Active parameters" in note for note in notes)


def test_weights_quantized_in_memory_count_as_those_of_the_checkpoint(tmp_path: Path) -> None:
    build_model("qwen2_moe").bfloat16().save_pretrained(tmp_path)
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
    )
    assert quantized.num_parameters() > 0
    assert any(type(each).__name__ == "Params4bit" for each in quantized.parameters())

    assert count_module(quantized) == (list_counts(inspect_model(tmp_path)), ())


def test_hooks_and_replaced_forwards_of_a_model_are_not_run() -> None:
    model: Any = build_model("mixtral")
    expected = count_module(model)
    seen: list[object] = []
    model.lm_head.register_forward_hook(lambda *args: seen.append(args))
    model.model.layers[0].register_forward_pre_hook(lambda *args: seen.append(args))
    # A tensor that is neither a parameter nor a buffer, such as a kept cache, is not copied.
    model.kept = torch.ones(3)
    assert count_module(model) == expected

    forward = model.lm_head.forward

    def replaced(*args: Any) -> Any:
        seen.append(args)
        return forward(*args)

    model.lm_head.forward = replaced
    assert count_module(model) == expected
    assert seen == []
    assert len(model.lm_head._forward_hooks) == 1


def test_what_was_changed_in_memory_is_counted() -> None:
    model: Any = build_model("mixtral")
    (before, _) = count_module(model)
    model.lm_head = nn.Linear(64, 300)
    (after, _) = count_module(model)
    assert before.total_parameters is not None
    assert after.total_parameters == before.total_parameters + 44 * 64 + 300


def test_what_a_model_raises_becomes_a_note() -> None:
    def fail() -> PreTrainedModel:
        raise ZeroDivisionError("by zero\nand more")

    assert count_model(fail) == (
        ModelCounts(),
        ("Parameters and FLOPs unknown: ZeroDivisionError: by zero.",),
    )


def test_parameters_stay_known_where_flops_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RecursionError

    model = build_model("mixtral")
    (expected, _) = count_module(model)
    monkeypatch.setattr(from_skeleton, "count_flops", fail)
    counts, notes = count_module(model)
    assert counts.flops_per_token is counts.dense_flops_per_token is None
    assert counts.total_parameters == expected.total_parameters
    assert counts.active_parameters == expected.active_parameters
    assert notes == ("FLOPs unknown: RecursionError.",)


def test_a_final_budget_ends_the_count_where_short_prompts_decide_nothing() -> None:
    tight = OperationBudget(per_layer=1, per_token=0)
    final = OperationBudget(per_layer=1, per_token=0, is_final=True)
    # A sliding window makes FLOPs depend on the length in another way.
    windowed = build_skeleton(build_config("gpt_oss"))
    assert count_flops(windowed, budget=tight) == count_flops(windowed)
    with pytest.raises(CantSimulate, match="too many operations"):
        count_flops(windowed, budget=final)
    plain = build_skeleton(build_config("mixtral"))
    assert count_flops(plain, budget=final) == count_flops(plain)
