"""Web addresses as names of models, and names that nearly are names of the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.catalogue.names import find_near_names, find_published_name
from moetool.catalogue.published import read_published_models
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.errors import InputError, UsageError

HUB = "https://huggingface.co"

# By address: its revision.
ADDRESSES: dict[str, str | None] = {
    f"{HUB}/org/name": None,
    f"{HUB}/org/name/": None,
    f"{HUB}/org/name?library=transformers": None,
    f"{HUB}/org/name#model-card": None,
    f"{HUB}/org/name/tree/main": None,
    f"{HUB}/org/name/tree/main/": None,
    f"{HUB}/org/name/blob/main/config.json": None,
    f"{HUB}/org/name/blob/main/config.json?raw=true": None,
    f"{HUB}/org/name/discussions/3": None,
    f"{HUB}/org/name/tree/v1.0": "v1.0",
    f"{HUB}/org/name/resolve/0123abc/model.safetensors?download=true": "0123abc",
    f"{HUB}/org/name/commit/0123abc": "0123abc",
    f"{HUB}/org/name/tree/refs%2Fpr%2F3": "refs/pr/3",
    f"{HUB}/org/name/blob/refs/pr/3/config.json": "refs/pr/3",
    f"{HUB}/org/name/tree/feature%2Fx": "feature/x",
    f"{HUB}/org/name/tree/feature%2Fx/": "feature/x",
    f"{HUB}/org/name/tree/main/onnx/small": None,
    f"{HUB}/org/name/blob/main/onnx/config.json": None,
    f"{HUB}/org/name/tree/0123abc/onnx": "0123abc",
    f"{HUB}/org/name/blob/v1.0/config.json": "v1.0",
    "http://huggingface.co/org/name": None,
    "HTTPS://HuggingFace.co/org/name": None,
    "https://www.huggingface.co/org/name": None,
    "https://hf.co/org/name/tree/v2": "v2",
    "huggingface.co/org/name/tree/v2": "v2",
    "hf.co/org/name": None,
    "hf://org/name": None,
    "hf://models/org/name": None,
    "hf://org/name@v2/config.json": "v2",
    "hf://org/name@main": None,
    "org/name/": None,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_address_of_a_page_stands_for_the_model(address: str) -> None:
    expected = ModelReference(
        text="org/name", kind=ModelKind.HUB, hub_id="org/name", revision=ADDRESSES[address]
    )

    assert resolve_model(address) == expected


def test_an_own_hub_has_addresses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://hub.example.com/org/name/tree/v2"
    with pytest.raises(InputError):
        resolve_model(address)

    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.com")

    assert resolve_model(address).revision == "v2"


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        (
            "https://www.modelscope.cn/models/Qwen/Qwen3-30B-A3B/summary",
            "is on ModelScope, which moetool does not read",
            "Name Qwen/Qwen3-30B-A3B if the Hugging Face Hub has it too",
        ),
        ("https://modelscope.ai/models/a/b", "is on ModelScope", "Name a/b if"),
        ("https://hf-mirror.com/a/b", "is on hf-mirror.com", "Name a/b if"),
        ("https://github.com/a/b", "is not an address on the Hugging Face Hub", "a Hub id"),
        ("s3://bucket/key", "is not an address on the Hugging Face Hub", "a folder"),
        (f"{HUB}/datasets/a/b", "is not the address of a model", f"{HUB}/Qwen/"),
        (f"{HUB}/spaces/a/b", "is not the address of a model", f"{HUB}/Qwen/"),
        (f"{HUB}/gpt2", "has one name after the site", f"{HUB}/Qwen/"),
        (f"{HUB}/datasets", "is not the address of a model", f"{HUB}/Qwen/"),
        (
            f"{HUB}/org/name/tree/feature/x",
            "does not show where the name of the revision ends",
            "Name org/name with --revision feature or --revision feature/x.",
        ),
        (
            f"{HUB}/org/name/blob/feature/x/config.json",
            "does not show where the name of the revision ends",
            "Name org/name with --revision feature or --revision feature/x.",
        ),
        (HUB, "is not the address of a model", f"{HUB}/Qwen/"),
        ("https://[", "No model at 'https://['", "org/name"),
    ],
)
def test_other_addresses_are_refused_by_what_they_are(
    address: str, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        resolve_model(address)

    assert message in caught.value.message
    assert f"'{address}'" in caught.value.message
    assert hint in caught.value.hint


def test_a_revision_that_is_asked_for_must_be_that_of_the_address() -> None:
    plain, dated = resolve_model(f"{HUB}/org/name"), resolve_model(f"{HUB}/org/name/tree/v1")
    assert plain.choose_revision("v2") == "v2"
    assert dated.choose_revision(None) == "v1"
    assert dated.choose_revision("v1") == "v1"

    with pytest.raises(UsageError, match="names the revision 'v1', not 'v2'"):
        dated.choose_revision("v2")


def test_a_repositorys_folder_in_the_cache_is_refused_by_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--a-name"
    folder.mkdir()

    with pytest.raises(InputError, match="is a folder of the Hub's cache") as caught:
        resolve_model(str(folder))

    assert caught.value.hint.startswith("Name org/a-name, or")
    (folder / "config.json").touch()
    assert resolve_model(str(folder)).path == folder


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("mixtral", ("mixtral-8x22b", "mixtral-8x7b")),
        ("Mixtral 8x7", ("mixtral-8x7b",)),
        ("gpt_oss", ("gpt-oss-120b", "gpt-oss-20b")),
        ("scout", ("llama-4-scout-17b-16e",)),
        ("qwen3-30b-a3b", ("Qwen/Qwen3-30B-A3B",)),
        ("xy", ()),
        ("", ()),
    ],
)
def test_names_are_found_by_their_beginning_or_a_part(text: str, beginning: tuple[str]) -> None:
    assert find_near_names(text).beginning == beginning


def test_a_hub_id_is_found_whatever_its_case() -> None:
    for name, model in read_published_models().items():
        found = find_published_name(model.hub_id.swapcase())
        assert found is not None
        assert read_published_models()[found].hub_id.lower() == model.hub_id.lower(), name
    assert find_published_name("org/name") is None


def test_a_path_names_what_its_text_names(tmp_path: Path) -> None:
    named = resolve_model(tmp_path)
    assert named == resolve_model(str(tmp_path))
    assert named.path == tmp_path
    assert resolve_model(named) is named
