"""Configurations that transformers saves are accepted, and mean the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from moetool.checkpoint.config import make_config
from moetool.inspection.inspect import inspect_model
from moetool.inspection.sources import from_skeleton
from moetool.simulation.meta.generation import CantSimulate
from tests.anatomy.counting import build_family_skeleton
from tests.families.tiny.configs import build_config
from tests.families.tiny.models import available


@pytest.fixture(autouse=True)
def _count_no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest, and depends on no file."""

    def refuse(_model: object, **_: object) -> None:
        raise CantSimulate("left out")

    monkeypatch.setattr(from_skeleton, "count_flops", refuse)


@pytest.mark.parametrize("name", available())
def test_a_saved_configuration_of_every_family_is_inspected(name: str, tmp_path: Path) -> None:
    config = build_config(name)
    # As the model itself does when it is saved.
    model_class = type(build_family_skeleton(name)).__name__
    config.architectures = [model_class]
    config.save_pretrained(tmp_path)

    inspected = inspect_model(str(tmp_path / "config.json"))

    assert inspected.model_type == config.model_type
    assert inspected.anatomy is not None
    assert inspected.anatomy.model_class == model_class
    assert inspected.num_moe_layers


@pytest.mark.parametrize("name", ["llama4", "dots3_note"])
def test_a_configuration_that_names_no_class_is_built_by_one_that_takes_all_of_it(
    name: str, tmp_path: Path
) -> None:
    if name not in available():
        return
    build_config(name).save_pretrained(tmp_path)

    inspected = inspect_model(str(tmp_path / "config.json"))

    assert inspected.parameters is not None
    assert inspected.parameters.components["vision"]


@pytest.mark.parametrize(
    ("tag", "number"), [("Infinity", math.inf), ("-Infinity", -math.inf), ("NaN", math.nan)]
)
def test_numbers_that_json_lacks_are_read_as_transformers_reads_them(
    tag: str, number: float
) -> None:
    limit = {"__float__": tag}
    raw = {
        "model_type": "llama",
        "alone": limit,
        "listed": [0.0, limit],
        "nested": {"inside": [limit], "other": {"__float__": tag, "x": 1}},
        "strange": {"__float__": "1"},
    }
    config = make_config(raw, name="x", label="x", code=None, trust_remote_code=False)

    def is_same(value: float) -> bool:
        return value == number or (math.isnan(value) and math.isnan(number))

    assert is_same(config.alone)
    assert is_same(config.listed[1])
    assert is_same(config.nested["inside"][0])
    assert config.nested["other"] == {"__float__": tag, "x": 1}
    assert config.strange == {"__float__": "1"}


@pytest.mark.parametrize("name", ["nemotron_h", "granitemoehybrid"])
def test_an_infinite_limit_of_time_steps_is_saved_and_read_back(name: str, tmp_path: Path) -> None:
    if name not in available():
        return
    config = build_config(name)
    config.time_step_limit = (0.0, math.inf)
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert raw["time_step_limit"] == [0.0, {"__float__": "Infinity"}]

    read = make_config(raw, name=name, label="x", code=None, trust_remote_code=False)

    assert list(read.time_step_limit) == [0.0, math.inf]
    assert inspect_model(str(tmp_path / "config.json")).parameters is not None
