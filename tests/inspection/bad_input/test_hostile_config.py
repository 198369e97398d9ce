"""Any config.json gives an inspection that adds up, or an error message.

Never another exception, never minutes, never gigabytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moetool.catalogue.published import read_published_config
from moetool.checkpoint.reference import resolve_model
from moetool.errors import InputError, MoetoolError, UntraceableError
from moetool.inspection.inspect import inspect_model
from moetool.inspection.result import Inspection
from moetool.report.inspect.data import RENDERERS
from moetool.report.renderer import View

# Fields cut down to as few layers as show every kind of layer.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "mixtral-8x7b": {"num_hidden_layers": 2},
    "deepseek-v3": {"num_hidden_layers": 2, "first_k_dense_replace": 1},
    "qwen3-30b-a3b": {"num_hidden_layers": 2},
    "gpt-oss-20b": {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "switch-base-8": {"num_layers": 2, "num_decoder_layers": 2},
    "llama-2-70b": {"num_hidden_layers": 2},
    "jamba-v0.1": {"num_hidden_layers": 6},
    "gemma-4-26b-a4b": {
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {"num_hidden_layers": 1},
    },
}

# Of every type that JSON has, and of sizes that no model has.
CONFUSING: tuple[object, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**62, 10**9, 10**30, -5),
    *(0.5, -1.5, float("nan"), float("inf"), "", "8", "os.system", "../../etc/passwd"),
    *([], [1], [None], [0, 1, 2], [[1]], {}, {"a": 1}, {"x": {"y": []}}),
    ["full_attention"] * 10_000,
)
MISSING = object()


def read_short_config(name: str) -> dict[str, Any]:
    """Return a published configuration of few layers."""
    config: dict[str, Any] = copy.deepcopy(read_published_config(name))
    for field, value in SHORT[name].items():
        config[field] = {**config[field], **value} if isinstance(value, dict) else value
    return config


def inspect_config(config: Mapping[str, object] | str, folder: Path) -> Inspection:
    """Inspect a config.json and check that its components add up and can be shown."""
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    inspection = inspect_model(resolve_model(str(path)))
    parameters = inspection.parameters
    assert parameters is not None
    assert sum(number or 0 for number in parameters.components.values()) == parameters.total
    assert sum(row.params or 0 for row in inspection.rows) == parameters.total
    for render in RENDERERS.values():
        assert render([inspection], View(per_layer=True))
        assert render([inspection, inspection])
    return inspection


@st.composite
def mutated_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a published configuration in which one or two fields are confused or missing."""
    config = read_short_config(draw(st.sampled_from(list(SHORT))))
    for _ in range(draw(st.integers(1, 2))):
        holders = [config, *(value for value in config.values() if isinstance(value, dict))]
        places = [(index, field) for index, holder in enumerate(holders) for field in holder]
        index, field = draw(st.sampled_from(places))
        value = draw(st.sampled_from((*CONFUSING, MISSING)))
        if value is MISSING:
            del holders[index][field]
        else:
            holders[index][field] = copy.deepcopy(value)
    return config


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(mutated_configs())
def test_a_confused_config_is_inspected_or_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    refusal = None
    try:
        inspect_config(config, tmp_path)
    except MoetoolError as error:
        refusal = error
    if refusal is not None:
        assert refusal.message.endswith(".")
        assert "\n" not in refusal.message
        assert refusal.hint


@pytest.mark.parametrize("name", SHORT)
def test_the_configs_are_inspected_as_they_are(name: str, tmp_path: Path) -> None:
    inspect_config(read_short_config(name), tmp_path)


def _nest(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("mixtral-8x7b", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
        ("mixtral-8x7b", {"num_local_experts": 10**7}, "num_local_experts is 10,000,000"),
        ("deepseek-v3", {"n_routed_experts": -8}, "n_routed_experts is -8"),
        ("mixtral-8x7b", {"hidden_size": 2**62}, "hidden_size is"),
        ("mixtral-8x7b", {"vocab_size": -5}, "vocab_size is -5"),
        ("llama-2-70b", {"num_labels": 10**8}, "num_labels is 100,000,000"),
        ("gemma-4-26b-a4b", {"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"] * 10**5}, "not a usable gpt_oss"),
        ("gemma-4-26b-a4b", {"text_config": "x"}, "not a usable gemma4"),
        ("gemma-4-26b-a4b", {"vision_config": [1]}, "not a usable gemma4"),
        ("llama-2-70b", {"hidden_act": "unheard-of"}, "No model can be built"),
        ("mixtral-8x7b", {"hidden_size": 2**40}, "No model can be built"),
    ],
)
def test_a_config_of_no_model_is_refused_by_what_is_wrong(
    name: str, changes: dict[str, object], word: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        inspect_config({**read_short_config(name), **changes}, tmp_path)
    assert word in caught.value.message


@pytest.mark.parametrize("model_type", ["../../etc/passwd", "os.system", "", "mixtral\x00"])
def test_a_model_type_that_is_none_is_refused(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(UntraceableError, match="has no architecture"):
        inspect_config({**read_short_config("mixtral-8x7b"), "model_type": model_type}, tmp_path)


@pytest.mark.parametrize(
    "architectures",
    [["os.system"], ["Trainer", None, 3], ["AutoModel"], "MixtralForCausalLM", ["x"] * 10**5],
    ids=["a function", "others", "an auto class", "a word", "a long list"],
)
def test_architectures_that_are_no_class_of_the_model_are_passed_over(
    architectures: object, tmp_path: Path
) -> None:
    config = {**read_short_config("mixtral-8x7b"), "architectures": architectures}
    inspection = inspect_config(config, tmp_path)
    assert inspection.anatomy is not None
    assert inspection.anatomy.model_class == "MixtralForCausalLM"


def test_a_config_nested_beyond_all_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        inspect_config(_nest(100_000), tmp_path)


def test_a_whole_config_that_is_nested_deeply_is_refused(tmp_path: Path) -> None:
    config = {**read_short_config("mixtral-8x7b"), "x": json.loads("[" * 400 + "]" * 400)}
    with pytest.raises(InputError, match="nested too deeply"):
        inspect_config(config, tmp_path)


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_local_experts", "num_experts_per_tok"])
def test_a_number_of_hundreds_of_digits_is_shown_by_its_ends(field: str, tmp_path: Path) -> None:
    config = {**read_short_config("mixtral-8x7b"), field: 10**400}
    with pytest.raises(InputError, match=f"{field} is 1000.*…0+[,.]") as caught:
        inspect_config(config, tmp_path)
    assert len(caught.value.message) < len(str(tmp_path)) + 200


def test_a_router_too_large_to_be_tried_out_has_an_unknown_style(tmp_path: Path) -> None:
    config = {**read_short_config("mixtral-8x7b"), "num_local_experts": 10**6}
    inspection = inspect_config(config, tmp_path)
    assert inspection.anatomy is not None
    (style,) = {layer.style for layer in inspection.anatomy.routed_layers}
    assert style is not None
    assert style.scores is None


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_router_whose_experts_take_no_token_has_an_unknown_style(
    capacity: int, tmp_path: Path
) -> None:
    config = {**read_short_config("switch-base-8"), "expert_capacity": capacity}
    inspection = inspect_config(config, tmp_path)
    assert inspection.anatomy is not None
    assert {layer.style and layer.style.scores for layer in inspection.anatomy.routed_layers} == {
        None
    }


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_attention_of_heads_without_width_is_inspected(tmp_path: Path) -> None:
    inspection = inspect_config({**read_short_config("switch-base-8"), "d_kv": 0}, tmp_path)
    assert inspection.parameters is not None
