"""Inspections of published models and of models on disk are right."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moetool.anatomy.parameters import ActiveDefinition
from moetool.catalogue.published import read_published_models
from moetool.checkpoint.reference import resolve_model
from moetool.checkpoint.subject import AskedSource
from moetool.inspection.inspect import inspect_model
from moetool.inspection.result import Inspection, Source
from tests.catalogue.totals import TOTALS

ALL, WITHOUT_INPUT, WITHOUT_BOTH = ActiveDefinition
COUNTED = [name for name, model in read_published_models().items() if model.can_be_counted]


@cache
def inspect(name: str) -> Inspection:
    return inspect_model(resolve_model(name))


def active_of(inspected: Inspection, definition: ActiveDefinition) -> int:
    assert inspected.parameters is not None
    number = inspected.parameters.active[definition]
    assert number is not None
    assert number.exact is not None
    return number.exact


# By name: the total, and the layers, experts, top-k, hidden size and expert width from which active
# parameters follow where an expert is three matrices without biases.
MUST_BE_RIGHT = {
    "mixtral-8x7b": (46_702_792_704, (32, 8, 2, 4096, 14336)),
    "mixtral-8x22b": (140_620_634_112, (56, 8, 2, 6144, 16384)),
    "deepseek-v2-lite": (15_706_484_224, (26, 64, 6, 2048, 1408)),
    "deepseek-v3": (671_026_404_352, (58, 256, 8, 7168, 2048)),
    "qwen1.5-moe-a2.7b": (14_315_784_192, (24, 60, 4, 2048, 1408)),
    "qwen3-30b-a3b": (30_532_122_624, (48, 128, 8, 2048, 768)),
    "olmoe-1b-7b": (6_919_161_856, (16, 64, 8, 2048, 1024)),
}


@pytest.mark.parametrize("name", MUST_BE_RIGHT)
def test_published_models_are_counted_exactly(name: str) -> None:
    total, (layers, experts, top_k, hidden, inner) = MUST_BE_RIGHT[name]
    inspected = inspect(name)
    assert inspected.parameters is not None

    assert inspected.parameters.total == total
    assert active_of(inspected, ALL) == total - layers * (experts - top_k) * 3 * hidden * inner
    assert sum(number or 0 for number in inspected.parameters.components.values()) == total
    assert inspected.source is Source.SKELETON


def test_experts_with_biases_and_experts_of_two_matrices_are_counted_exactly() -> None:
    gpt_oss, switch = inspect("gpt-oss-20b"), inspect("switch-base-8")
    assert gpt_oss.parameters is not None
    assert switch.parameters is not None

    assert gpt_oss.parameters.total == 20_914_757_184
    per_expert = 3 * 2880 * 2880 + 3 * 2880
    assert active_of(gpt_oss, ALL) == 20_914_757_184 - 24 * (32 - 4) * per_expert
    assert switch.parameters.total == 619_339_008
    # Six layers of each stack, seven experts of which a token does not run.
    assert active_of(switch, ALL) == 619_339_008 - 12 * 7 * 2 * 768 * 3072


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x22b", (39.15, 38.96, 38.76)),
        ("deepseek-v2-lite", (2.66, 2.45, 2.24)),
        ("deepseek-v3", (37.55, 36.63, 35.70)),
        ("qwen1.5-moe-a2.7b", (2.69, 2.38, 2.07)),
        ("qwen3-30b-a3b", (3.35, 3.04, 2.73)),
        ("olmoe-1b-7b", (1.28, 1.18, 1.08)),
        ("gpt-oss-20b", (4.19, 3.61, 3.03)),
    ],
)
def test_active_parameters_meet_the_figures_of_the_field(
    name: str, billions: tuple[float, ...]
) -> None:
    counted = [round(active_of(inspect(name), one) / 1e9, 2) for one in ActiveDefinition]

    assert counted == list(billions)


def test_mixtrals_active_parameters_follow_from_its_configuration() -> None:
    hidden, inner, layers, vocabulary = 4096, 14336, 32, 32000
    attention = 2 * hidden * hidden + 2 * hidden * 1024
    norms = (2 * layers + 1) * hidden
    run = layers * (attention + 8 * hidden + 2 * 3 * hidden * inner) + norms

    inspected = inspect("mixtral-8x7b")

    assert active_of(inspected, WITHOUT_BOTH) == run
    assert active_of(inspected, WITHOUT_INPUT) == run + vocabulary * hidden
    assert active_of(inspected, ALL) == run + 2 * vocabulary * hidden


@pytest.mark.parametrize("name", ["llama-2-70b", "llama-3.1-405b"])
def test_a_dense_model_is_a_result_and_all_active(name: str) -> None:
    inspected = inspect(name)
    assert inspected.parameters is not None

    assert active_of(inspected, ALL) == inspected.parameters.total
    assert (inspected.num_moe_layers, inspected.num_experts, inspected.top_k) == (0, 0, 0)
    assert inspected.parameters.sparsity == 1
    assert any(note.startswith("Dense model") for note in inspected.notes)


def test_a_dense_models_flops_are_those_of_itself() -> None:
    flops = inspect("llama-2-70b").flops
    assert flops is not None

    assert (flops.prefill_ratio, flops.decode_ratio) == (1, 1)


def test_facts_of_a_model_with_all_kinds_of_parts() -> None:
    inspected = inspect("deepseek-v3")
    anatomy = inspected.anatomy
    assert anatomy is not None

    assert (inspected.num_layers, inspected.num_moe_layers) == (61, 58)
    assert (inspected.num_experts, inspected.top_k, inspected.num_shared_experts) == (256, 8, 1)
    assert anatomy.dense_layers == {"decoder": (0, 1, 2)}
    assert {layer.expert_width for layer in anatomy.routed_layers} == {2048}
    style = anatomy.routed_layers[0].style
    assert style is not None
    assert (style.scores, style.is_normalized, style.scale) == ("sigmoid", True, 2.5)
    assert (style.has_selection_bias, style.num_groups, style.num_chosen_groups) == (True, 8, 4)
    assert (anatomy.context_length, anatomy.vocab_size) == (163_840, 129_280)
    assert inspected.quantization == "fp8, blocks of 128 x 128"
    assert any("MTP" in note for note in inspected.notes)


def test_a_vision_tower_is_in_the_total_and_not_in_active() -> None:
    inspected = inspect("qwen3-vl-30b-a3b")
    parameters = inspected.parameters
    assert parameters is not None

    vision = parameters.components["vision"]
    assert vision is not None
    assert vision > 5e8
    assert parameters.active_components["vision"] is not None
    assert parameters.active_components["vision"].most == 0
    text = inspect("qwen3-30b-a3b").parameters
    assert text is not None
    assert parameters.total is not None
    assert parameters.total - vision == text.total
    assert active_of(inspected, ALL) == active_of(inspect("qwen3-30b-a3b"), ALL)


def test_a_stand_in_gets_what_its_class_lacks() -> None:
    parameters = inspect("grok-1").parameters
    assert parameters is not None

    # Four norms a layer and one at the end, all of 6144.
    assert parameters.components["norm"] == (4 * 64 + 1) * 6144
    assert parameters.total == 315_684_820_992


def test_experts_that_differ_by_layer_are_listed_by_layer(tmp_path: Path) -> None:
    config = """{"architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe",
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 40, "vocab_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_experts": 8, "moe_topk": [2, 3]}"""
    (tmp_path / "config.json").write_text(config, encoding="utf-8")

    inspected = inspect_model(resolve_model(str(tmp_path)))

    assert inspected.top_k == (2, 3)
    assert inspected.num_experts == 8


def test_files_and_skeleton_of_the_demonstration_checkpoint_agree(demo: Path) -> None:
    both = inspect_model(resolve_model("demo"))
    headers = inspect_model(resolve_model(str(demo)), source=AskedSource.HEADERS)
    skeleton = inspect_model(resolve_model(str(demo)), source=AskedSource.SKELETON)

    assert both.source is Source.BOTH
    assert both.files is not None
    assert both.files.differences == ()
    assert headers.parameters is not None
    for other in (both, skeleton):
        assert other.parameters is not None
        assert other.parameters.total == headers.parameters.total == 2_924_160
        assert other.parameters.components == headers.parameters.components
        assert other.parameters.active == headers.parameters.active
    assert skeleton.files is None
    assert all(row.params == row.file_params for row in both.rows)


@pytest.mark.parametrize("name", COUNTED)
def test_every_model_of_the_catalogue_is_inspected_and_meets_its_figures_or_says_why_not(
    name: str,
) -> None:
    """One test, because building the largest of them takes most of a minute."""
    inspected = inspect(name)
    parameters = inspected.parameters
    assert parameters is not None
    assert parameters.total is not None
    if not read_published_models()[name].extra_parameters:
        assert parameters.total == TOTALS[name]
    run = parameters.active[ALL]
    assert run is not None

    assert sum(number or 0 for number in parameters.components.values()) == parameters.total
    assert 0 < run.fewest <= run.most <= parameters.total
    assert sum(row.params or 0 for row in inspected.rows) == parameters.total
    assert (
        sum(number.most for number in parameters.active_components.values() if number) == run.most
    )
    assert None not in (inspected.num_layers, inspected.num_shared_experts)

    published = inspected.published
    assert published is not None
    # Grok-1's vendor gives a share of the weights instead.
    assert published.active_b is None or published.meets_active
    assert published.meets_total in (True, None) or published.note


def test_most_published_models_have_figures_to_meet() -> None:
    stated = [model for model in read_published_models().values() if model.vendor.active_b]

    assert len(COUNTED) >= 65
    assert len(stated) >= 55


def test_what_is_packed_in_an_unknown_way_leaves_sums_unknown(demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:, :8].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")

    inspected = inspect_model(str(folder), source="headers")

    parameters = inspected.parameters
    assert parameters is not None
    assert (parameters.total, parameters.sparsity) == (None, None)
    assert parameters.components["mixer"] is None
    assert parameters.components["routed_experts"] == 2_359_296
    assert set(parameters.active.values()) == {None}
    unknown = [row for row in inspected.rows if row.params is None]
    assert [(row.layer, row.component, row.file_params) for row in unknown] == [(2, "mixer", None)]
    assert any(name in note for note in inspected.notes)
