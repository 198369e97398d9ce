"""Databases that TensorStore wrote are read completely, and damaged ones are refused.

`ocdbt_files.json` holds two of them: `orbax`, the model of `saved.py` as orbax-checkpoint 0.12.8
saves it by default; `deep`, of tensorstore 0.1.86, with nodes of 250 bytes and values of up to ten
bytes in them, so that its tree has several levels.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.checkpoint.layouts.ocdbt import read_descriptions
from moetool.errors import InputError
from moetool.inspection.inspect import inspect_model
from tests.checkpoint.layouts.saved import EXPERT, NUM_EXPERTS, NUM_LAYERS, TOTAL

FILES: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("ocdbt_files.json").read_text("utf-8")
)
# The keys and values that were written.
DEEP = {f"k/{number:03}/x": b"v" * (number % 20) for number in range(60)}


def write(name: str, folder: Path) -> Path:
    for path, content in FILES[name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(base64.b64decode(content))
    return folder


def test_all_values_of_a_tree_of_several_levels_are_read(tmp_path: Path) -> None:
    folder = write("deep", tmp_path)

    assert read_descriptions(folder, is_wanted=lambda _: True) == DEEP


def test_only_wanted_values_are_read(tmp_path: Path) -> None:
    found = read_descriptions(write("deep", tmp_path), is_wanted=lambda key: key < "k/010")

    assert found == {key: value for key, value in DEEP.items() if key < "k/010"}


def test_a_checkpoint_as_orbax_saves_it_is_counted(tmp_path: Path) -> None:
    found = inspect_model(write("orbax", tmp_path))

    assert found.parameters is not None
    assert found.parameters.total == TOTAL
    assert found.parameters.components["routed_experts"] == NUM_LAYERS * NUM_EXPERTS * EXPERT
    assert (found.num_layers, found.num_experts, found.expert_params) == (
        NUM_LAYERS,
        NUM_EXPERTS,
        EXPERT,
    )
    assert found.files is not None
    assert found.files.dtype_bytes == {"float32": 4 * TOTAL}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path)
    for path in folder.rglob("d/*"):
        path.unlink()

    with pytest.raises(InputError, match="does not lead to the arrays") as caught:
        read_descriptions(folder, is_wanted=lambda _: True)
    assert "No such file" in caught.value.facts[0]


@pytest.mark.parametrize("end", [0, 4, 17, 60, -1])
def test_a_manifest_that_breaks_off_is_refused(end: int, tmp_path: Path) -> None:
    folder = write("deep", tmp_path)
    path = folder / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:end])

    with pytest.raises(InputError, match="does not lead to the arrays"):
        read_descriptions(folder, is_wanted=lambda _: True)


@settings(max_examples=80)
@given(data=st.data())
def test_odd_bytes_are_refused_or_read(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write("deep", tmp_path_factory.getbasetemp() / "odd-ocdbt")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)

    with suppress(InputError):
        read_descriptions(folder, is_wanted=lambda _: True)
