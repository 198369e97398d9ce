"""The tensors of a Hub repository by range requests, from a Hub that behaves and one that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.fake_hub import COMMIT, MISBEHAVIOURS, REPOSITORY
from tests.checkpoint.safetensors_files import write_file
from tests.command import REPOSITORY as ROOT

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = {"model_type": "mixtral", "num_hidden_layers": 2}
NOWHERE = "http://127.0.0.1:1"

# Its header takes a second request, and its data no memory or time that could pass unnoticed.
MANY = {
    f"model.layers.{layer}.mlp.experts.gate_up_proj": ("BF16", [1 << 20, 1 << 9])
    for layer in range(1500)
}
FEW = {"lm_head.weight": ("F32", [1 << 12, 1 << 10]), "scale": ("F8_E8M0", [])}

Found = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """A Hub that runs, and what it serves."""

    endpoint: str
    folder: Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with a checkpoint of two shards, of 1.5 TB."""
    folder = tmp_path_factory.mktemp("hub")
    write_file(folder / FIRST, MANY)
    write_file(folder / SECOND, FEW)
    weight_map = {**dict.fromkeys(MANY, FIRST), **dict.fromkeys(FEW, SECOND)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "tests.checkpoint.fake_hub", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Hub(server.stdout.readline().strip(), folder)
        server.terminate()


def read_repositories(
    *names: str, endpoint: str, cache: Path, is_offline: bool = False
) -> dict[str, Found]:
    """Return by name what each repository held, or the error that reading it ended in."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1" if is_offline else "0",
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "HF_HUB_ETAG_TIMEOUT": "3",
    }
    completed = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.read_hub", *names],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stderr == ""
    found: dict[str, Found] = json.loads(completed.stdout)
    return found


@pytest.fixture(scope="module")
def found(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """The results of all repositories, which are read in parallel."""
    names = [REPOSITORY, f"{REPOSITORY}@{COMMIT}", f"{REPOSITORY}@v9", "org/unknown", "org/a--b"]
    names += [f"org/{name}" for name in MISBEHAVIOURS]
    cache = tmp_path_factory.mktemp("cache")
    return read_repositories(*names, endpoint=hub.endpoint, cache=cache)


@pytest.mark.parametrize("name", [REPOSITORY, f"{REPOSITORY}@{COMMIT}", "org/weights-come-whole"])
def test_headers_and_configuration_are_read_without_the_weights(
    name: str, found: dict[str, Found], hub: Hub
) -> None:
    read = found[name]

    assert read["tensors"] == [*MANY, *FEW]
    assert read["file_bytes"] == {
        name: (hub.folder / name).stat().st_size for name in (FIRST, SECOND)
    }
    assert read["config"] == CONFIG
    assert read["commit"] == COMMIT
    assert not read["is_cached"]


def test_reading_the_hub_imports_no_torch(found: dict[str, Found]) -> None:
    assert "huggingface_hub" in found[REPOSITORY]["imported"]
    assert not {"torch", "transformers", "numpy"} & set(found[REPOSITORY]["imported"])


def test_a_repository_without_weights_has_a_configuration_alone(found: dict[str, Found]) -> None:
    read = found["org/description-names-no-weights"]

    assert read["config"] == CONFIG
    assert read["tensors"] is None


UNREACHABLE = "Can't reach the Hub for {}, and it is not in the local cache"
SENSELESS = "The Hub's answers about {} are incomplete or make no sense"
NOT_WHOLE = f"'{{}}/{FIRST}' is not a complete safetensors file"

# By repository: what is said of it, and part of what is shown of the answer.
REFUSALS = {
    "org/unknown": ("The Hub has no model {}, or it is private", ""),
    f"{REPOSITORY}@v9": (f"{REPOSITORY} has no revision 'v9'", ""),
    "org/a--b": ("'{}' is not a name that the Hub allows", ""),
    "org/gated": ("{} is gated: its owner must grant access first", ""),
    "org/description-fails": (UNREACHABLE, "500 Internal Server Error"),
    "org/description-is-html": (UNREACHABLE, "Expecting value"),
    "org/description-is-a-list": (UNREACHABLE, "not list"),
    "org/description-names-no-commit": (UNREACHABLE, "no commit hash"),
    "org/description-names-no-config": ("{} holds no config.json", ""),
    "org/description-lacks-a-shard": ("'{}' lacks 1 of its 2 weight files", f"missing: {FIRST}"),
    "org/description-never-comes": (UNREACHABLE, "timed out"),
    "org/description-never-ends": (UNREACHABLE, "no end after 9 s"),
    "org/config-fails": (SENSELESS, "500 Internal Server Error"),
    "org/config-is-html": ("config.json' can't be read as JSON", ""),
    "org/config-never-comes": (SENSELESS, "timed out"),
    "org/weights-fail": (SENSELESS, "500 Internal Server Error"),
    "org/weights-are-html": (NOT_WHOLE, "100000000 are allowed"),
    "org/weights-break-off": (SENSELESS, "20 bytes"),
    "org/weights-change-their-length": (SENSELESS, "and then of"),
    "org/weights-come-short": (SENSELESS, "20 bytes for bytes=0-99999"),
    "org/weights-come-from-elsewhere": (SENSELESS, "Content-Range 'bytes 1-"),
    "org/weights-are-one-byte-too-long": (NOT_WHOLE, "where the header describes"),
    "org/weights-never-come": (SENSELESS, "timed out"),
    "org/weights-never-end": (SENSELESS, "no end after 9 s"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_does_not_give_is_refused_in_a_sentence(
    name: str, found: dict[str, Found]
) -> None:
    message, fact = REFUSALS[name]
    error = found[name]

    assert message.replace("{}", name) in error["message"]
    assert error["message"].endswith(".")
    assert error["exit_code"] == 3
    assert error["hint"].endswith(".")
    assert fact in "\n".join(error["facts"])
    assert not any("\n" in line for line in error["facts"])


def test_every_misbehaviour_of_the_fake_hub_is_tried() -> None:
    tried = {*REFUSALS, "org/weights-come-whole", "org/description-names-no-weights"}

    assert {f"org/{name}" for name in MISBEHAVIOURS} <= tried


@pytest.mark.parametrize(("endpoint", "is_offline"), [(NOWHERE, False), (NOWHERE, True)])
def test_without_the_hub_the_cache_is_read(
    endpoint: str, is_offline: bool, hub: Hub, tmp_path: Path
) -> None:
    def read_without_hub(name: str) -> Found:
        return read_repositories(name, endpoint=endpoint, cache=tmp_path, is_offline=is_offline)[
            name
        ]

    assert UNREACHABLE.replace("{}", REPOSITORY) in read_without_hub(REPOSITORY)["message"]
    read_repositories(REPOSITORY, endpoint=hub.endpoint, cache=tmp_path)
    read = read_without_hub(REPOSITORY)
    assert (read["config"], read["commit"], read["is_cached"]) == (CONFIG, COMMIT, True)
    assert read["tensors"] is None

    (snapshot,) = tmp_path.rglob(f"snapshots/{COMMIT}")
    assert {path.name for path in snapshot.iterdir()} == {"config.json", INDEX}
    for name in (FIRST, SECOND):
        (snapshot / name).symlink_to(hub.folder / name)
    read = read_without_hub(REPOSITORY)
    assert read["tensors"] == [*MANY, *FEW]
    assert read_without_hub(f"{REPOSITORY}@{COMMIT}")["tensors"] == [*MANY, *FEW]
    assert "message" in read_without_hub(f"{REPOSITORY}@other")


def test_weights_that_are_cached_are_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    name = "org/weights-fail"
    assert "message" in read_repositories(name, endpoint=hub.endpoint, cache=tmp_path)[name]
    (snapshot,) = tmp_path.rglob(f"snapshots/{COMMIT}")
    for file in (FIRST, SECOND):
        (snapshot / file).symlink_to(hub.folder / file)

    read = read_repositories(name, endpoint=hub.endpoint, cache=tmp_path)[name]

    assert read["tensors"] == [*MANY, *FEW]
    assert not read["is_cached"]
