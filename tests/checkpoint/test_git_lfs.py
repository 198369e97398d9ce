"""Pointers of Git LFS in place of a checkpoint's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moetool.checkpoint.config import load_tokenizer
from moetool.checkpoint.files import Checkpoint, check_files
from moetool.errors import InputError
from moetool.git_lfs import POINTER_START
from moetool.trace.reading.reader import open_trace
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    for file in demo.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("command", ["inspect", "route-trace"])
def test_a_pointer_is_refused_with_what_fetches_the_file(
    name: str, command: str, folder: Path, run_moetool: RunMoetool
) -> None:
    (folder / name).write_bytes(POINTER)
    prompt = ("--prompt", "x") if command == "route-trace" else ()
    expected = Refusal(
        3, error=f"'{folder / name}' is a Git LFS pointer", hint="Run `git lfs pull`"
    )

    assert_refused(run_moetool(command, folder, *prompt), expected, target=None)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "merges.txt", "a.tiktoken"],
)
def test_a_pointer_in_place_of_a_tokenizer_file_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)

    with pytest.raises(InputError, match=f"{name}' is a Git LFS pointer"):
        load_tokenizer(Checkpoint(name="x", folder=folder, revision=None), trust_remote_code=False)


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json"])
def test_a_pointer_in_place_of_settings_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)

    with pytest.raises(InputError, match=f"{name}' is a Git LFS pointer"):
        check_files(folder)


def test_a_pointer_in_place_of_pickled_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(POINTER)

    with pytest.raises(InputError, match=r"pytorch_model.bin' is a Git LFS pointer"):
        check_files(folder)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_pointer_in_place_of_a_trace_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"trace{suffix}"
    path.write_bytes(POINTER)

    with pytest.raises(InputError, match="is a Git LFS pointer"):
        open_trace(path)


def test_the_beginning_of_a_pointer_alone_is_not_one(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER_START[:-1])

    with pytest.raises(InputError, match="is not a complete safetensors file"):
        check_files(folder)
