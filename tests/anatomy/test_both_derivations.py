"""A skeleton's modules and the headers of saved files give the same parameters for a family.

Neither knows of the other: one walks modules under transformers' names, the other reads tensor names
as publishers write them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from moetool.anatomy.components import Component
from moetool.anatomy.headers.table import HeaderTable, count_headers
from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import count_skeleton
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.inspection.differences import explain_differences
from tests.anatomy.counting import build_family_skeleton, count_family, readable_families
from tests.families.tiny.models import available, build_family

# What keeps the top-k that config.json states from being beyond doubt.
LEAVES_DOUBT = {
    "dbrx": "does not state how many experts",
    "diffusion_gemma": "another number of experts than config.json states",
    "doge": "different numbers of experts",
    "ernie4_5_vl_moe": "different numbers of experts",
    "longcat_flash": "different numbers of experts",
    "nllb-moe": "does not state how many experts",
    "phimoe": "another number of experts than config.json states",
    "switch_transformers": "does not state how many experts",
}

DENSE_FAMILIES = {
    "bart": AutoModelForSeq2SeqLM,
    "bloom": AutoModelForCausalLM,
    "falcon": AutoModelForCausalLM,
    "gemma2": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "gpt_neox": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "mamba2": AutoModelForCausalLM,
    "mistral": AutoModelForCausalLM,
    "olmo2": AutoModelForCausalLM,
    "opt": AutoModelForCausalLM,
    "phi3": AutoModelForCausalLM,
    "qwen3": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
}

DENSE_SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
DENSE_OWN_SIZES = {"mamba2": {"num_heads": 8, "head_dim": 8}, "qwen3": {"head_dim": 8}}


def save(model: PreTrainedModel, folder: Path) -> HeaderTable:
    """Save a model and return the table of its headers."""
    model.save_pretrained(folder)
    headers = read_local_headers(folder)
    assert headers is not None
    return count_headers(headers, json.loads((folder / "config.json").read_text("utf-8")))


def count_untrained(name: str) -> int:
    """Return the elements of what the files hold as parameters and this transformers as buffers.

    Mistral-Large-4 learns the exponents of its rotary embedding; before 5.24 they were a buffer.
    """
    buffers = count_family(name).skeleton.named_buffers()
    return sum(buffer.numel() for path, buffer in buffers if path.endswith("rotary_emb.alpha"))


@pytest.fixture(scope="module")
def saved_family(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Return the headers' table of a tiny family, which is saved once."""

    @cache
    def count(name: str) -> HeaderTable:
        return save(build_family(name), tmp_path_factory.mktemp("saved"))

    return count


def test_a_rule_reads_the_experts_of_every_family_that_is_compared() -> None:
    unread = {name for name in available() if find_experts(build_family_skeleton(name)).unreadable}
    assert unread == set(available()) - set(readable_families())


@pytest.mark.parametrize("name", readable_families())
def test_both_derivations_give_the_same_totals_for_every_component(
    name: str, saved_family: object
) -> None:
    files = saved_family(name)  # type: ignore[operator]
    model = count_family(name).table
    untrained = count_untrained(name)

    counted = model.count_components()
    counted[Component.OTHER] += untrained
    assert files.table.count_components() == counted
    assert files.table.total == model.total + untrained
    # What else lies in the files is buffers, none of them a parameter of the model.
    assert all(row.params == 0 for row in explain_differences(model, files))
    assert files.unknown is None


@pytest.mark.parametrize("name", readable_families())
def test_a_skeletons_total_is_the_number_of_its_parameters(name: str) -> None:
    family = count_family(name)

    assert family.table.total == sum(p.numel() for p in family.skeleton.parameters())
    assert family.table.total == sum(p.numel() for p in build_family(name).parameters())
    assert family.table.total == sum(family.table.count_components().values())


@pytest.mark.parametrize("name", readable_families())
def test_headers_count_active_parameters_as_the_model_runs_them_or_not_at_all(
    name: str, saved_family: object
) -> None:
    files = saved_family(name)  # type: ignore[operator]
    table = count_family(name).table

    if name in LEAVES_DOUBT:
        assert files.table.count_active(ActiveDefinition.ALL) is None
        assert LEAVES_DOUBT[name] in files.active_unknown
        return
    assert files.active_unknown is None
    untrained = count_untrained(name)
    for definition in ActiveDefinition:
        active = table.count_active(definition)
        assert active is not None
        expected = ActiveRange(active.fewest + untrained, active.most + untrained)
        assert files.table.count_active(definition) == expected


@pytest.mark.parametrize("name", readable_families())
def test_names_show_how_many_experts_a_layer_has(name: str, saved_family: object) -> None:
    files = saved_family(name)  # type: ignore[operator]
    counted = {
        (layer.stack.partition(".")[0], layer.layer): layer.num_experts
        for layer in count_family(name).layers
        if layer.stack not in ("vision", "audio")
    }
    if name == "diffusion_gemma":
        # Its encoder's experts are its decoder's, and saved once.
        counted = {key: number for key, number in counted.items() if key[0] == "decoder"}
    for place, number in files.num_experts.items():
        if number is not None and name not in ("ernie4_5_vl_moe", "longcat_flash"):
            assert number == counted[place]
    assert len(files.num_experts) == len({key for key in counted if "vision" not in key[0]})


@pytest.mark.parametrize("name", DENSE_FAMILIES)
def test_both_derivations_agree_on_dense_models(name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = DENSE_SIZES | DENSE_OWN_SIZES.get(name, {})
    config = transformers.CONFIG_MAPPING[name](**sizes)
    model = DENSE_FAMILIES[name].from_config(config)
    routed = RoutedSkeleton.of(model)
    assert routed.layers == ()

    files = save(model, tmp_path)
    table = count_skeleton(routed, dtype=torch.float32)

    assert files.table.count_components() == table.count_components()
    assert table.total == sum(p.numel() for p in model.parameters())
    for definition in ActiveDefinition:
        assert files.table.count_active(definition) == table.count_active(definition)
