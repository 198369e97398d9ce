"""Files for tools that fine-tune or prune, read back by what those tools do with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moetool import select_experts
from moetool.analysis.selection.result import Selection
from moetool.errors import UsageError
from moetool.interchange.exports.selection_formats import SelectionFormat
from moetool.interchange.exports.selections import render_selection
from moetool.library.expert_names import read_expert_names
from tests.families.tiny.models import build_family

# Chosen so that a layer has several experts, and others keep theirs.
TOP_P = 0.3


@pytest.fixture(scope="module")
def selection(demo_trace: Path) -> Selection:
    return select_experts(
        demo_trace, domain="python", top_p=TOP_P, freeze_list=True, prune_ratio=0.25
    )


def write(selection: Selection, kind: str) -> Any:
    return json.loads(render_selection(selection, SelectionFormat(kind)))


def test_esft_finds_every_layer_by_its_number(selection: Selection) -> None:
    config = write(selection, "esft")
    assert list(config) == ["experts", "shared_experts", "non_expert_modules"]
    assert (config["shared_experts"], config["non_expert_modules"]) == (False, False)
    for layer in selection.layers:
        # As `to_esft` looks them up.
        trainable = config["experts"][str(layer.layer)]
        assert tuple(trainable) == layer.selected
    assert len(config["experts"]) == 6


def test_llm_compressor_s_list_names_blocks_and_ids_that_stay(selection: Selection) -> None:
    retained = write(selection, "llm-compressor")
    assert list(retained) == [f"model.layers.{layer}.mlp" for layer in range(6)]
    for ids in retained.values():
        assert ids == sorted(set(ids))
        assert len(ids) == 6


def test_peft_s_keys_name_fused_parameters(selection: Selection) -> None:
    config = write(selection, "peft")
    assert config["target_modules"] == []
    assert config["lora_dropout"] == 0
    assert len(config["target_parameters"]) == 12


def select_of(model: nn.Module, demo_trace: Path, tmp_path: Path, **options: Any) -> Selection:
    """Return a selection with the names of a model, whose configuration is saved."""
    model.config.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    return select_experts(
        demo_trace, layers=[1, 2, 3], freeze_list=True, model=tmp_path, top_p=TOP_P, **options
    )


def take_step(model: nn.Module, names: Any) -> None:
    """Train one step as the documentation describes, given a file for `freeze-list`."""
    trainable = [re.compile(pattern) for pattern in names["trainable"]]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(pattern.search(name) for pattern in trainable)
        if name in names["rows"]:
            mask = parameter.new_zeros(len(parameter), *[1] * (parameter.dim() - 1))
            mask[names["rows"][name]] = 1
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=0.1, weight_decay=0)
    inputs = {"input_ids": torch.arange(3, 123).view(2, 60)}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [{}, {"shared_experts": True}, {"non_expert_modules": True}],
    ids=lambda options: "+".join(options) or "experts",
)
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "gpt_oss"])
def test_a_step_changes_only_the_rows_of_selected_experts(
    family: str, options: dict[str, bool], demo_trace: Path, tmp_path: Path
) -> None:
    # The gradients of 16 bits refuse a mask in 32.
    model = build_family(family).bfloat16()
    selection = select_of(model, demo_trace, tmp_path, **options)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    take_step(model, write(selection, "freeze-list"))
    chosen = {int(layer): experts for layer, experts in selection.experts.items()}
    num_changed = 0
    for name, value in model.named_parameters():
        changed = (value.detach() != before[name]).reshape(len(value), -1).any(dim=1)
        if ".experts." in name:
            layer = int(re.search(r"layers\.(\d+)\.", name)[1])  # type: ignore[index]
            rows = set(torch.nonzero(changed).flatten().tolist())
            assert rows <= set(chosen.get(layer, ())), name
            num_changed += len(rows)
        elif "shared_expert." in name:
            assert bool(changed.any()) == bool(options.get("shared_experts")), name
        else:
            assert bool(changed.any()) <= bool(options.get("non_expert_modules")), name
    assert num_changed > 0
    if options.get("non_expert_modules"):
        embedding = next(name for name in before if "embed" in name)
        assert not torch.equal(model.get_parameter(embedding), before[embedding])


def test_separate_experts_are_named_one_by_one(tmp_path: Path) -> None:
    model = build_family("switch_transformers")
    model.config.save_pretrained(tmp_path)
    parameters = dict(model.named_parameters())
    for layer in read_expert_names(tmp_path).values():
        for parameter in layer.parameters:
            assert f".expert_{parameter.expert}." in parameter.name
            assert parameter.name in parameters
    dbrx = read_expert_names("dbrx")["decoder", 0]
    assert {parameter.rows_per_expert for parameter in dbrx.parameters} == {10752}


@pytest.mark.parametrize("family", ["jetmoe", "llama4_text", "longcat_flash", "deepseek_v3"])
def test_names_are_those_of_parameters(family: str, tmp_path: Path) -> None:
    model = build_family(family)
    model.config.save_pretrained(tmp_path)
    parameters = dict(model.named_parameters())
    for layer in read_expert_names(tmp_path).values():
        assert layer.parameters
        for parameter in layer.parameters:
            assert len(parameters[parameter.name]) >= 8
        assert (layer.num_groups, layer.top_groups) == (
            (2, 1) if family == "deepseek_v3" else (1, None)
        )


def test_what_a_selection_lacks_is_refused(demo_trace: Path) -> None:
    bare = select_experts(demo_trace)
    for kind in ("llm-compressor", "freeze-list", "peft"):
        with pytest.raises(UsageError, match=r"none are dropped|freeze list"):
            write(bare, kind)
