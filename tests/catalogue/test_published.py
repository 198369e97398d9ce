"""The catalogue's published models and reported systems."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from moetool.anatomy.components import Component
from moetool.catalogue.published import (
    PublishedModel,
    read_published_config,
    read_published_models,
    read_reported_systems,
)
from moetool.errors import InputError

MODELS = list(read_published_models().values())
COUNTED = [model for model in MODELS if model.can_be_counted]

# Fields of config.json that say nothing of the architecture.
MEANINGLESS = {"auto_map", "_name_or_path", "transformers_version", "bos_token_id", "temperature"}


def fields_of(config: object) -> set[str]:
    """Return the names of all fields, nested ones included."""
    if not isinstance(config, dict):
        return set()
    return set(config).union(*(fields_of(value) for value in config.values()))


def by_name(model: PublishedModel) -> str:
    return model.name


def test_names_are_in_lower_case_and_in_order() -> None:
    names = [model.name for model in MODELS]
    assert names == sorted(names)
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)


def test_every_model_has_a_hub_id_of_its_own() -> None:
    hub_ids = [model.hub_id for model in MODELS]
    assert len(set(hub_ids)) == len(hub_ids)
    assert all(re.fullmatch(r"[A-Za-z0-9-]+/[\w.-]+", hub_id) for hub_id in hub_ids)


def test_there_is_one_configuration_for_each_model_that_can_be_counted() -> None:
    stored = files("moetool.catalogue").joinpath("configs").iterdir()
    assert {file.name for file in stored} == {f"{model.name}.json" for model in COUNTED}


@pytest.mark.parametrize("model", COUNTED, ids=by_name)
def test_a_configuration_names_its_class_and_holds_nothing_meaningless(
    model: PublishedModel,
) -> None:
    config = read_published_config(model.name)
    assert isinstance(config["model_type"], str)
    assert isinstance(config["architectures"], list)
    assert not fields_of(config) & MEANINGLESS


def test_quantization_and_further_prediction_layers_are_kept() -> None:
    config = read_published_config("deepseek-v3")
    quantization = config["quantization_config"]
    assert isinstance(quantization, dict)
    assert quantization["quant_method"] == "fp8"
    assert config["num_nextn_predict_layers"] == 1


def test_figures_are_kept_as_published() -> None:
    vendor = read_published_models()["mixtral-8x7b"].vendor
    assert (vendor.total_b, vendor.active_b, vendor.source) == ("46.7", "12.9", "model card")
    figures = [f for m in MODELS for f in (m.vendor.total_b, m.vendor.active_b) if f is not None]
    assert all(re.fullmatch(r"\d+(\.\d+)?", figure) for figure in figures)


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_figures_have_a_source_and_no_source_is_without_figures(model: PublishedModel) -> None:
    assert (model.vendor.source is None) == (model.vendor.total_b is None)


def test_words_of_a_vendor_on_active_parameters_are_kept() -> None:
    noted = {model.name for model in MODELS if model.vendor.active_note}
    assert {"deepseek-v3", "gpt-oss-20b", "ling-mini-2.0", "nemotron-3-nano-30b-a3b"} <= noted


def test_what_a_stand_in_lacks_is_a_known_component_and_said_in_words() -> None:
    with_extra = {model.name: model for model in MODELS if model.extra_parameters}
    assert set(with_extra) == {"grok-1", "snowflake-arctic"}
    for model in with_extra.values():
        assert model.counted_as
        for row in model.extra_parameters:
            assert Component(row.component) is Component.NORM
            assert row.params_per_layer > 0
            assert row.because.endswith(".")


def test_a_configuration_is_found_in_upper_case_and_is_a_fresh_copy() -> None:
    config = read_published_config("Mixtral-8x7B")
    config["num_hidden_layers"] = 1
    assert read_published_config("mixtral-8x7b")["num_hidden_layers"] == 32


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="no model 'mixtral-8x8b'"):
        read_published_config("mixtral-8x8b")


def test_a_model_that_cant_be_counted_is_refused_with_the_reason() -> None:
    assert [model.name for model in MODELS if not model.can_be_counted] == ["kimi-k3"]
    with pytest.raises(InputError, match="Kimi-K3 can't be counted: transformers has no class"):
        read_published_config("kimi-k3")


def test_reported_systems_are_quoted_with_their_source() -> None:
    systems = read_reported_systems()
    assert set(systems) == {"gpt-4", "gemini", "glam-64b-64e"}
    assert not set(systems) & set(read_published_models())
    gpt_4 = systems["gpt-4"]
    assert (gpt_4.total, gpt_4.active, gpt_4.experts) == ("1.6–1.8T", "200–280B", "16, top-2")
    assert gpt_4.source == "press reports of 2023"
    assert gpt_4.notes is not None
    assert "Unconfirmed" in gpt_4.notes
    assert (systems["gemini"].total, systems["gemini"].active) == (None, None)
