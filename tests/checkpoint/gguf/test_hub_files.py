"""GGUF models on the Hub by range requests, from a Hub that behaves and one that does not."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moetool.checkpoint.gguf.cursor import CHUNK_BYTES
from moetool.checkpoint.reference import ModelKind, resolve_model
from moetool.errors import UsageError
from tests.checkpoint.fake_hub import COMMIT
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, pack_text, write_gguf
from tests.command import REPOSITORY as ROOT

WHOLE, PARTS = "tiny.gguf", ["split-00001-of-00002.gguf", "split-00002-of-00002.gguf"]
LONG, BROKEN, LONE = "long.gguf", "broken.gguf", "lone-00001-of-00002.gguf"
NOWHERE = "http://127.0.0.1:1"
# Its header takes a second request.
NUM_TOKENS = 680_000
# Numbers of types in a header.
LIST, TEXT = 9, 8


@dataclass(frozen=True)
class Hub:
    """A Hub that runs, what it serves, and what it was asked for."""

    endpoint: str
    folder: Path
    log: Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub whose files have holes of data."""
    folder = tmp_path_factory.mktemp("hub")
    log = tmp_path_factory.mktemp("log") / "asked"
    metadata, tensors = moe_metadata(), moe_tensors()
    write_gguf(folder / WHOLE, metadata, tensors)
    tokens = struct.pack("<IIQ", LIST, TEXT, NUM_TOKENS) + pack_text("token") * NUM_TOKENS
    write_gguf(folder / LONG, {**metadata, "tokenizer.ggml.tokens": tokens}, moe_tensors("f32"))
    halves = (dict(list(tensors.items())[:5]), dict(list(tensors.items())[5:]))
    for number, half in enumerate(halves):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(tensors)}
        write_gguf(folder / PARTS[number], {**metadata, **split}, half)
        if number == 0:
            write_gguf(folder / LONE, {**metadata, **split}, half)
    (folder / BROKEN).write_bytes((folder / WHOLE).read_bytes()[:1000])
    command = [sys.executable, "-m", "tests.checkpoint.fake_hub", str(folder), str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Hub(server.stdout.readline().strip(), folder, log)
        server.terminate()


def read_files(*names: str, endpoint: str, cache: Path) -> dict[str, Any]:
    """Return by name what each file held, or the error that reading it ended in."""
    completed = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.gguf.read_hub_files", *names],
        cwd=ROOT,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DOWNLOAD_TIMEOUT": "3",
            "HF_HUB_ETAG_TIMEOUT": "3",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stderr == ""
    found: dict[str, Any] = json.loads(completed.stdout)
    return found


@pytest.fixture(scope="module")
def found(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all files."""
    files = (WHOLE, LONG, PARTS[1], LONE, BROKEN, "other.gguf")
    names = [f"org/model/{file}" for file in files]
    names += [f"{hub.endpoint}/org/model/blob/{COMMIT}/{WHOLE}", f"org/model/{WHOLE}@v9"]
    names += [
        "org/model",
        "org/unknown/x.gguf",
        f"org/config-fails/{WHOLE}",
        f"hf://org/model/{WHOLE}",
    ]
    return read_files(*names, endpoint=hub.endpoint, cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", ["org/model/{}", "hf://org/model/{}"])
def test_a_file_is_read_by_its_header(name: str, hub: Hub, found: dict[str, Any]) -> None:
    read = found[name.format(WHOLE)]

    assert read["tensors"] == list(moe_tensors())
    assert read["file_bytes"] == [(hub.folder / WHOLE).stat().st_size]


def test_the_address_of_a_file_is_read_at_its_commit(hub: Hub, found: dict[str, Any]) -> None:
    assert found[f"{hub.endpoint}/org/model/blob/{COMMIT}/{WHOLE}"]["path"] == f"org/model/{WHOLE}"
    assert f"/resolve/{COMMIT}/{WHOLE}" in hub.log.read_text()


def test_long_headers_take_further_requests_and_no_data_is_asked_for(
    hub: Hub, found: dict[str, Any]
) -> None:
    assert found[f"org/model/{LONG}"]["tensors"] == list(moe_tensors())
    asked = [each.rpartition("=")[2] for each in hub.log.read_text().splitlines() if LONG in each]
    first, second = 2 * CHUNK_BYTES, 3 * CHUNK_BYTES
    assert asked == [f"0-{first - 1}", f"{first}-{second - 1}"]
    assert second < (hub.folder / LONG).stat().st_size


def test_all_parts_of_a_split_file_are_read(found: dict[str, Any]) -> None:
    read = found[f"org/model/{PARTS[1]}"]

    assert read["tensors"] == list(moe_tensors())
    assert read["path"] == f"org/model/{PARTS[0]}"
    assert len(read["file_bytes"]) == len(PARTS)


@pytest.mark.parametrize(
    ("name", "message", "fact"),
    [
        (f"org/model/{LONE}", "'org/model' lacks 1 of the 2 parts of a GGUF file.", "missing:"),
        (f"org/model/{BROKEN}", "is not a complete GGUF file.", "seen:"),
        ("org/model/other.gguf", "org/model holds no file 'other.gguf'.", BROKEN),
        (f"org/model/{WHOLE}@v9", "org/model has no revision 'v9'.", ""),
        ("org/model", "org/model holds no config.json: its models are GGUF files.", BROKEN),
        ("org/unknown/x.gguf", "The Hub has no model org/unknown, or it is private.", ""),
    ],
)
def test_what_the_hub_does_not_give_is_refused_in_a_sentence(
    name: str, message: str, fact: str, found: dict[str, Any]
) -> None:
    error = found[name]

    assert error["message"].endswith(message)
    assert error["exit_code"] == 3
    assert error["hint"].endswith(".")
    assert fact in "\n".join(error["facts"])


def test_without_the_hub_the_cache_is_read(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / WHOLE).symlink_to(hub.folder / WHOLE)
    names = [f"org/model/{file}" for file in (WHOLE, LONG)]

    read, error = read_files(*names, endpoint=NOWHERE, cache=tmp_path).values()

    assert read["tensors"] == list(moe_tensors())
    assert (
        error["message"] == "Can't reach the Hub for org/model, and it is not in the local cache."
    )
    assert "HF_HUB_OFFLINE" in error["hint"]


def test_a_file_is_named_by_its_repository_and_its_path(tmp_path: Path) -> None:
    found = resolve_model("org/name/folder/file.Q4_K_M.gguf")
    assert (found.kind, found.hub_id) == (ModelKind.HUB_GGUF, "org/name")
    assert found.file == "folder/file.Q4_K_M.gguf"
    assert found.choose_revision("v1") == "v1"

    address = resolve_model("https://huggingface.co/org/name/resolve/refs/pr/7/a/b.gguf?download=1")
    assert (address.file, address.revision) == ("a/b.gguf", "refs/pr/7")
    with pytest.raises(UsageError, match="names the revision 'refs/pr/7', not 'v1'"):
        address.choose_revision("v1")

    local = tmp_path / "org" / "name"
    local.mkdir(parents=True)
    (local / "file.gguf").touch()
    assert resolve_model(str(local / "file.gguf")).kind is ModelKind.GGUF
