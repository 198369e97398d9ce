"""One model is counted alike, whichever program saved it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.anatomy.parameters import ActiveDefinition
from moetool.errors import InputError
from moetool.inspection.inspect import inspect_model
from moetool.inspection.result import Inspection
from tests.checkpoint.layouts.saved import (
    ACTIVE,
    EXPERT,
    NUM_EXPERTS,
    NUM_LAYERS,
    SAVE,
    STATING,
    TOP_K,
    TOTAL,
)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    """The model by the program that saved it."""
    found = {}
    for name, save in SAVE.items():
        folder = tmp_path_factory.mktemp("saved")
        save(folder)
        found[name] = inspect_model(folder)
    return found


@pytest.mark.parametrize("name", SAVE)
def test_parameters_and_experts_are_counted(name: str, inspected: dict[str, Inspection]) -> None:
    found = inspected[name]

    assert found.parameters is not None
    assert found.parameters.total == TOTAL
    assert found.parameters.components["routed_experts"] == NUM_LAYERS * NUM_EXPERTS * EXPERT
    assert (found.num_layers, found.num_moe_layers) == (NUM_LAYERS, NUM_LAYERS)
    assert (found.num_experts, found.expert_params) == (NUM_EXPERTS, EXPERT)
    assert found.files is not None
    assert found.files.dtype_bytes == {"float32": 4 * TOTAL}
    assert found.layout is not None


@pytest.mark.parametrize("name", SAVE)
def test_active_parameters_are_known_where_a_file_states_top_k(
    name: str, inspected: dict[str, Inspection]
) -> None:
    found = inspected[name]
    assert found.parameters is not None

    if name in STATING:
        assert found.top_k == TOP_K
        assert found.parameters.active_params == ACTIVE
        assert any(STATING[name] in note for note in found.notes)
    else:
        assert found.top_k is None
        assert found.parameters.active[ActiveDefinition.ALL] is None
        # What the note gives is enough to compute them.
        rest = ACTIVE - TOP_K * NUM_LAYERS * EXPERT
        assert f"A token runs {rest:,} parameters" in found.notes[-1]
        assert f"{NUM_LAYERS * EXPERT:,} for each" in found.notes[-1]
        assert any("no file of the checkpoint states" in note for note in found.notes)


@pytest.mark.parametrize("name", SAVE)
def test_without_a_config_json_no_model_is_built(name: str, tmp_path: Path) -> None:
    SAVE[name](tmp_path)

    with pytest.raises(InputError) as caught:
        inspect_model(tmp_path, source="skeleton")
    assert "config.json" in caught.value.message


def test_one_file_is_counted_alone_and_the_config_json_next_to_it_is_mentioned(
    tmp_path: Path,
) -> None:
    SAVE["safetensors"](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))

    found = inspect_model(tmp_path / "model.safetensors")

    assert found.parameters is not None
    assert found.parameters.total == TOTAL
    assert str(tmp_path) in found.notes[0]
