"""The tensors of a checkpoint folder: one file, shards with an index, and contradictions."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.errors import InputError
from tests.checkpoint.safetensors_files import read_with_library, write_file

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

# Larger than any disk at hand: what reads more than headers does not come back.
HUGE = ("BF16", [1 << 20, 1 << 18])


def write_index(folder: Path, weight_map: dict[str, str], *, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of two shards and their index."""
    write_file(tmp_path / FIRST, {"b": HUGE, "a": ("F8_E4M3", [2, 3])})
    write_file(tmp_path / SECOND, {"c": ("F32", [])})
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    return tmp_path


def refusal_of(folder: Path) -> InputError:
    """Return the error that reading a folder ends in."""
    with pytest.raises(InputError) as caught:
        read_local_headers(folder)
    return caught.value


def test_one_file_is_read_as_the_library_reads_it(demo: Path) -> None:
    headers = read_local_headers(demo)

    assert headers is not None
    path = demo / "model.safetensors"
    ours = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in headers.tensors}
    assert ours == read_with_library(path)
    assert headers.file_bytes == {path.name: path.stat().st_size}
    assert {tensor.file for tensor in headers.tensors} == {path.name}


def test_shards_are_read_in_the_order_of_files_and_data(sharded: Path) -> None:
    headers = read_local_headers(sharded)

    assert headers is not None
    assert [(tensor.name, tensor.file) for tensor in headers.tensors] == [
        ("b", FIRST),
        ("a", FIRST),
        ("c", SECOND),
    ]
    assert [tensor.num_bytes for tensor in headers.tensors] == [1 << 39, 6, 4]
    sizes = {name: (sharded / name).stat().st_size for name in (FIRST, SECOND)}
    assert headers.file_bytes == sizes


def test_shards_without_an_index_are_read(sharded: Path) -> None:
    (sharded / INDEX).unlink()

    headers = read_local_headers(sharded)

    assert headers is not None
    assert [tensor.name for tensor in headers.tensors] == ["b", "a", "c"]


def test_tensors_that_the_index_leaves_out_are_kept(sharded: Path) -> None:
    write_index(sharded, {"a": FIRST, "c": SECOND})

    headers = read_local_headers(sharded)

    assert headers is not None
    assert [tensor.name for tensor in headers.tensors] == ["b", "a", "c"]


def test_model_safetensors_stands_alone_among_other_files(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {"a": ("U8", [1])})
    write_file(tmp_path / "consolidated.safetensors", {"a": ("U8", [1])})
    write_index(tmp_path, {"a": "pytorch_model-00001.bin"}, name="pytorch_model.bin.index.json")

    headers = read_local_headers(tmp_path)

    assert headers is not None
    assert list(headers.file_bytes) == ["model.safetensors"]


def test_a_folder_without_weights_holds_no_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder.safetensors").mkdir()

    assert read_local_headers(tmp_path) is None


def test_pickled_weights_are_read_as_safetensors_are(tmp_path: Path) -> None:
    tensors = {"b": torch.zeros(4, 3), "a": torch.zeros(2, dtype=torch.bfloat16)}
    kinds: dict[str, Callable[..., object]] = {"safetensors": save_file, "bin": torch.save}
    found = {}
    for suffix, save in kinds.items():
        folder = tmp_path / suffix
        folder.mkdir()
        names = {name: f"pytorch_model-{name}.{suffix}" for name in tensors}
        for name, file in names.items():
            save({name: tensors[name]}, folder / file)
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        write_index(folder, names, name=f"{stem}.{suffix}.index.json")
        headers = read_local_headers(folder)
        assert headers is not None
        found[suffix] = {(t.name, t.dtype, t.shape, t.num_bytes) for t in headers.tensors}

    assert found["bin"] == found["safetensors"]
    assert len(found["bin"]) == 2


@pytest.mark.parametrize(
    ("weight_map", "message", "fact"),
    [
        ({"a": "model-3.safetensors", "c": SECOND}, "lacks 1 of its 2", "model-3.safetensors"),
        ({"a": "", "c": SECOND}, "lacks 1 of its 2", ""),
        ({"a": "x\0y"}, "lacks 1 of its 1", r"missing: 'x\x00y'"),
        ({"a": "n" * 999}, "lacks 1 of its 1", "missing: " + "n" * 100),
        ({name: name for name in "efg"}, "lacks 3 of its 3", "missing: e, f, g"),
        ({name: name for name in "efghi"}, "lacks 5 of its 5", "missing: e, f, g, …"),
        ({"a": "\ud800.safetensors"}, "can't be read as JSON: it has half", None),
        ({"a": "../" + FIRST}, "outside the checkpoint", "../" + FIRST),
        ({"a": "sub/../../" + FIRST}, "outside the checkpoint", FIRST),
        ({"a": "/etc/passwd"}, "outside the checkpoint", "/etc/passwd"),
        ({"a": "..\\" + FIRST}, "outside the checkpoint", FIRST),
        ({"a": "C:" + FIRST}, "outside the checkpoint", FIRST),
        ({"a": SECOND, "b": FIRST}, "names 1 tensors that", "missing: a"),
        ({"e": FIRST, "f": SECOND, "c": SECOND}, "names 2 tensors that", "missing: e, f"),
    ],
)
def test_an_index_that_its_files_contradict_is_refused(
    weight_map: dict[str, str], message: str, fact: str | None, sharded: Path
) -> None:
    write_index(sharded, weight_map)

    error = refusal_of(sharded)

    assert message in error.message
    assert str(sharded) in error.message
    assert fact is None or error.facts[0].endswith(fact)
    assert all(len(line) < 400 and line.isprintable() for line in error.facts)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_tensor_in_two_files_is_refused(with_index: bool, sharded: Path) -> None:
    write_file(sharded / SECOND, {"c": ("F32", []), "a": ("U8", [1])})
    if not with_index:
        (sharded / INDEX).unlink()

    error = refusal_of(sharded)

    assert f"Two weight files of '{sharded}' hold tensors of the same name" in error.message
    assert error.facts == ("seen: a",)


def test_a_broken_shard_is_refused_by_its_path(sharded: Path) -> None:
    (sharded / SECOND).write_bytes(b"")

    assert f"'{sharded / SECOND}' is not a complete safetensors file" in refusal_of(sharded).message


def test_a_folder_that_is_a_file_or_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path in (tmp_path / "file", tmp_path / "gone"):
        assert f"'{path}' can't be read" in refusal_of(path).message


def test_garbage_is_collected_again_after_reading_and_after_a_refusal(sharded: Path) -> None:
    read_local_headers(sharded)
    assert gc.isenabled()

    (sharded / FIRST).unlink()
    refusal_of(sharded)
    assert gc.isenabled()


def test_reading_headers_imports_nothing_heavy(demo: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from moetool.checkpoint.headers.local_headers import read_local_headers\n"
        "assert read_local_headers(Path(sys.argv[1])) is not None\n"
        "print(*sys.modules)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(demo)], capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in completed.stdout.split()}
    heavy = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "pandas"}
    assert not modules & heavy
