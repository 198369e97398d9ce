"""Differences between files and model are explained, and the explanations are complete."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from moetool.anatomy.components import Component
from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.table import count_headers
from moetool.anatomy.parameters import ParameterTable
from moetool.checkpoint.reference import ModelKind, ModelReference
from moetool.inspection.differences import explain_differences
from moetool.inspection.inspect import inspect_model
from moetool.inspection.rows import pair_rows
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Tensors, make_headers
from tests.inspection.saved_families import FAMILIES, save_family, sum_differences
from tests.tiny_models import build_model


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_differs_where_nothing_was_changed(name: str) -> None:
    saved = save_family(name)

    differences = saved.explain(saved.tensors)

    assert sum_differences(differences) == {}
    assert {difference.what for difference in differences} <= {Reason.BUFFERS.value}


def move_to_layer(name: str, number: int) -> str | None:
    """Return the name of a tensor with another layer's number; None outside layers."""
    words = name.split(".")
    at = next((place for place, word in enumerate(words) if word.isdigit()), None)
    if at is None:
        return None
    return ".".join([*words[:at], str(number), *words[at + 1 :]])


@given(data=st.data(), name=st.sampled_from(FAMILIES))
def test_differences_account_for_every_parameter_of_changed_files(
    data: st.DataObject, name: str
) -> None:
    """In each component, the explanations add up to the files' parameters minus the model's.

    What files hold is added up from the changes themselves, not from what moetool read.
    """
    saved = save_family(name)
    tensors, expected = dict(saved.tensors), Counter[str]()
    names = sorted(saved.component_of)
    # Only its experts show that a layer routes: without them, other parts change their component.
    free = [key for key in names if saved.component_of[key] is not Component.ROUTED_EXPERTS]
    changed: set[str] = set()
    for _ in range(data.draw(st.integers(1, 6))):
        change = data.draw(st.sampled_from(["drop", "copy", "resize"]))
        key = data.draw(st.sampled_from(free if change == "drop" else names))
        if key in changed:
            continue
        component = saved.component_of[key].value
        size = prod(saved.tensors[key][1])
        if change == "drop":
            changed.add(key)
            del tensors[key]
            expected[component] -= size
        elif change == "resize":
            changed.add(key)
            dtype, shape = tensors[key]
            grown = [*shape[:-1], shape[-1] + data.draw(st.integers(1, 5))] if shape else [7]
            tensors[key] = (dtype, grown)
            expected[component] += prod(grown) - size
        else:
            number = data.draw(st.sampled_from([40, 41]))
            copy = move_to_layer(key, number)
            needs_experts = saved.component_of[key] in (Component.ROUTER, Component.SHARED_EXPERTS)
            if copy is None or copy in tensors or needs_experts:
                continue
            tensors[copy] = saved.tensors[key]
            expected[component] += size

    differences = saved.explain(tensors)

    assert sum_differences(differences) == {key: n for key, n in expected.items() if n}
    for difference in differences:
        if difference.components:
            surplus = difference.file_params - difference.params
            assert sum(difference.components.values()) == surplus


def test_a_missing_shards_layers_are_named_as_a_whole() -> None:
    saved = save_family("mixtral")
    tensors = {
        key: tensor
        for key, tensor in saved.tensors.items()
        if not key.startswith(("model.layers.1.", "model.layers.2."))
    }

    (difference,) = saved.explain(tensors)

    assert difference.what == (
        "whole layers missing from the files, layers 1 to 2: shards may be missing"
    )
    assert difference.file_params == 0
    assert set(difference.components) == {"mixer", "router", "routed_experts", "norm"}


def test_layers_of_two_stacks_are_listed_separately() -> None:
    saved = save_family("switch_transformers")
    gone = "decoder.block.1."
    tensors = {key: tensor for key, tensor in saved.tensors.items() if not key.startswith(gone)}
    assert len(tensors) < len(saved.tensors)

    (difference,) = saved.explain(tensors)

    assert "layer 1 of the decoder" in difference.what


def test_several_differences_of_one_component_are_listed_separately() -> None:
    saved = save_family("qwen2_moe")
    tensors = dict(saved.tensors)
    del tensors["model.layers.1.mlp.shared_expert_gate.weight"]
    name = "model.layers.2.self_attn.q_proj.weight"
    tensors[name] = ("F32", [9, 9])
    for key in [key for key in tensors if key.startswith("model.layers.3.self_attn.")]:
        del tensors[key]

    words = {difference.what for difference in saved.explain(tensors)}

    assert words == {
        "shared experts of another size in the files, layer 1",
        "mixer of another size in the files, layer 2",
        "mixer missing from the files, layer 3",
    }


def test_layers_that_the_model_does_not_build_are_named() -> None:
    saved = save_family("qwen2_moe")
    tensors = dict(saved.tensors)
    for key in list(tensors):
        if key.startswith("model.layers.1."):
            tensors[key.replace("layers.1.", "layers.9.")] = tensors[key]

    (difference,) = saved.explain(tensors)

    assert difference.what == Reason.BEYOND.value
    assert difference.components["routed_experts"] > 0


def test_layers_that_predict_further_tokens_are_said_to_be_those() -> None:
    saved = save_family("deepseek_v3")
    number = saved.config["num_hidden_layers"]
    prefix = f"model.layers.{number}"
    tensors: Tensors = {
        **saved.tensors,
        f"{prefix}.eh_proj.weight": ("F32", [64, 128]),
        f"{prefix}.self_attn.q_a_proj.weight": ("F32", [24, 64]),
        f"{prefix}.shared_head.head.weight": ("F32", [256, 64]),
    }

    (difference,) = (row for row in saved.explain(tensors) if row.components)

    assert difference.what == Reason.MTP.value
    assert (difference.num_tensors, difference.params) == (3, 0)
    assert difference.components == {"other": 64 * 128, "mixer": 24 * 64, "lm_head": 256 * 64}


def test_a_tied_head_is_named_though_config_json_does_not_say_that_it_is_tied() -> None:
    """The class's own default ties it."""
    saved = save_family("gemma4_text")
    config = {key: value for key, value in saved.config.items() if "tie_word" not in key}
    embedding = saved.tensors["model.embed_tokens.weight"]
    tensors: Tensors = {**saved.tensors, "lm_head.weight": embedding}
    assert saved.model.is_tied

    found = explain_differences(saved.model, count_headers(make_headers(tensors), config))
    (difference,) = (row for row in found if row.components)

    assert difference.what == Reason.TIED_HEAD.value
    assert difference.components == {"lm_head": prod(embedding[1])}


def test_a_tower_that_the_class_does_not_build_is_named() -> None:
    saved = save_family("mixtral")
    tower = layouts.plain("vision_tower.layers.0.attn.q_proj", 32, 32)

    (difference,) = saved.explain({**saved.tensors, **tower})

    assert difference.what == "a vision tower, which this class of transformers does not build"
    assert difference.components == {"vision": 32 * 32}


def test_biases_that_a_model_trains_are_not_called_missing() -> None:
    saved = save_family("mixtral")
    grown = ParameterTable(
        rows=tuple(
            type(row)(
                row.stack, row.layer, row.component, row.num_params + 8, None, row.dtype, None
            )
            if row.component is Component.ROUTER
            else row
            for row in saved.model.rows
        ),
        is_tied=saved.model.is_tied,
    )
    layers = [row.layer for row in saved.model.rows if row.component is Component.ROUTER]
    tensors: Tensors = {
        **saved.tensors,
        **{f"model.layers.{n}.mlp.gate.e_score_correction_bias": ("F32", [8]) for n in layers},
    }

    found = explain_differences(grown, count_headers(make_headers(tensors), saved.config))

    assert [row.what.partition(",")[0] for row in found] == [
        "buffers",
        "biases that select experts: their names are those of buffers",
    ]
    assert sum_differences(found) == {"router": -8 * len(layers)}


def test_weights_packed_in_an_unknown_way_are_said_to_be_uncounted() -> None:
    saved = save_family("mixtral")
    name = "model.layers.1.self_attn.q_proj"
    tensors = {**saved.tensors, **layouts.hqq(name, 64, 64)}
    del tensors[f"{name}.weight"]

    (difference,) = (row for row in saved.explain(tensors) if row.components)

    assert difference.what == ("mixer packed in an unknown way, not counted in the files, layer 1")
    assert difference.components == {"mixer": -64 * 64}


def test_weights_packed_in_an_unknown_way_are_said_to_be_there_even_if_all_others_agree() -> None:
    saved = save_family("mixtral")
    extra = layouts.hqq("model.layers.1.self_attn.extra_proj", 64, 64)

    found = [row for row in saved.explain({**saved.tensors, **extra}) if "packed" in row.what]

    assert [row.components for row in found] == [{"mixer": 0}]


def test_copies_of_the_embedding_are_named() -> None:
    saved = save_family("mixtral")
    embedding = saved.tensors["model.embed_tokens.weight"]
    tensors: Tensors = {**saved.tensors, "encoder.embed_tokens.weight": embedding}

    (difference,) = saved.explain(tensors)

    assert difference.what == "copies of the embedding"
    assert difference.components == {"embedding": prod(embedding[1])}


def test_what_no_rule_places_may_lie_in_a_layer_or_outside() -> None:
    saved = save_family("mixtral")
    (row,) = (row for row in saved.model.rows if row.component is Component.EMBEDDING)
    other = replace(row, component=Component.OTHER, layer=0, num_params=8)
    model = replace(saved.model, rows=(*saved.model.rows, other))
    tensors: Tensors = {**saved.tensors, "strange.weight": ("F32", [8])}

    assert explain_differences(model, count_headers(make_headers(tensors), saved.config)) == ()


def test_rows_pair_every_place_of_the_model_and_of_the_files() -> None:
    saved = save_family("mixtral")
    tensors = {key: value for key, value in saved.tensors.items() if key != "lm_head.weight"}
    tensors |= layouts.plain("vision_tower.layers.0.attn.q_proj", 32, 32)
    files = count_headers(make_headers(tensors), saved.config)

    rows = list(pair_rows(saved.model, files))

    assert sum(row.params or 0 for row in rows) == saved.model.total
    assert sum(row.file_params or 0 for row in rows) == files.table.total
    only = {row.component: (row.params, row.file_params) for row in rows if None in
            (row.params, row.file_params)}  # fmt: skip
    assert only == {"lm_head": (prod(saved.tensors["lm_head.weight"][1]), None),
                    "vision": (None, 32 * 32)}  # fmt: skip


def test_a_checkpoint_in_mxfp4_differs_from_its_model_by_nothing_but_scales(
    tmp_path: Path,
) -> None:
    """As the released gpt-oss: blocks of 32 weights in 16 bytes, with a byte for their scale."""
    model = build_model("gpt_oss", intermediate_size=64)
    model.save_pretrained(tmp_path)
    weights = dict(model.state_dict())
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_inputs, num_outputs = weights.pop(name).shape
        shape = (num_experts, num_outputs, num_inputs // 32)
        weights[f"{name}_blocks"] = model.lm_head.weight.new_zeros((*shape, 16)).byte()
        weights[f"{name}_scales"] = model.lm_head.weight.new_zeros(shape).byte()
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")

    found = inspect_model(ModelReference(str(tmp_path), ModelKind.FOLDER, tmp_path))

    assert found.files is not None
    assert found.files.differences is not None
    assert [row.what for row in found.files.differences] == [Reason.SCALES.value]
    assert found.parameters is not None
    assert found.parameters.total == model.num_parameters()
    assert found.quantization == "mxfp4"
