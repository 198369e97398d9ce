"""A Hub id as the model: downloaded, traced, cached; and what is said when it can't be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from huggingface_hub import constants

from moetool import read_trace
from moetool.trace.reading.reader import open_trace
from tests.checkpoint.fake_hub import COMMIT
from tests.command import REPOSITORY, Completed, run_main, run_process

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def endpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Hub that has the demonstration checkpoint as org/model.

    And, as real repositories do, the same weights once more for another program.
    """
    folder = tmp_path_factory.mktemp("hub") / "model"
    shutil.copytree(demo, folder)
    shutil.copy(demo / "model.safetensors", folder / "consolidated.safetensors")
    command = [sys.executable, "-m", "tests.checkpoint.fake_hub", str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        yield hub.stdout.readline().strip()
        hub.terminate()


def run_with(*arguments: str | Path, endpoint: str, cache: Path) -> Completed:
    """Run moetool in this process with a Hub and an empty cache, as the variables below set them.

    huggingface_hub reads its variables once, when it is imported.
    """
    with (
        patch.object(constants, "ENDPOINT", endpoint),
        patch.object(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        ),
        patch.object(constants, "HF_HUB_OFFLINE", False),
        patch.object(constants, "HF_HUB_DISABLE_XET", True),
        patch.object(constants, "HF_HUB_CACHE", str(cache)),
    ):
        return run_main(*arguments)


def run_process_with(*arguments: str | Path, endpoint: str, cache: Path) -> Completed:
    """Run moetool in its own process with a Hub and a cache."""
    return run_process(
        *arguments,
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT=endpoint,
        HF_HOME=str(cache),
        HF_HUB_DISABLE_XET="1",
    )


def test_a_hub_id_is_downloaded_traced_and_found_in_the_cache_without_the_hub(
    endpoint: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.parquet"
    arguments = ("route-trace", "org/model", "--prompt", "Hello there", "--force", "-o", trace)
    online = run_process_with(*arguments, endpoint=endpoint, cache=tmp_path / "cache")
    assert online.returncode == 0, online.stderr
    assert online.stderr.startswith("org/model@01234567: 12 MB of weights, unless already cached")
    metadata = open_trace(trace).metadata
    assert metadata is not None
    assert (metadata.model, metadata.revision) == ("org/model", COMMIT)
    first = read_trace(trace)
    fetched = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert fetched == {"model.safetensors"}

    nowhere = "http://127.0.0.1:1"
    offline = run_with(*arguments, endpoint=nowhere, cache=tmp_path / "cache" / "hub")
    assert offline.returncode == 0, offline.stderr
    assert read_trace(trace).equals(first)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["org/unknown"], "The Hub has no model org/unknown"),
        (["org/model", "--revision", "v9"], "org/model has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    endpoint: str, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    completed = run_with(
        "route-trace", *arguments, "--prompt", "Hello", endpoint=endpoint, cache=tmp_path
    )
    assert completed.returncode == 3
    assert completed.stderr.startswith(f"error: {sentence}")
    assert completed.stderr.count("\nhint: ") == 1
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize("source", ["auto", "headers", "skeleton"])
def test_a_hub_id_is_inspected_without_its_weights(
    source: str, endpoint: str, tmp_path: Path
) -> None:
    arguments = ("inspect", "org/model", "--source", source, "--format", "json")
    online = run_with(*arguments, endpoint=endpoint, cache=tmp_path / "cache")
    assert online.returncode == 0, online.stderr
    assert online.stderr == ""
    model = json.loads(online.stdout)["models"][0]
    assert model["parameters"]["total"] == 2_924_160
    assert model["revision"] == COMMIT
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    if source == "auto":
        assert model["files"]["differences"] == []

    nowhere = "http://127.0.0.1:1"
    offline = run_with(*arguments, endpoint=nowhere, cache=tmp_path / "cache")
    if source == "headers":
        assert offline.returncode == 3
        assert "has no weight files with readable headers" in offline.stderr
    else:
        assert json.loads(offline.stdout)["models"][0]["parameters"] == model["parameters"]
        assert "The Hub could not be reached" in offline.stdout


@pytest.mark.parametrize(
    ("repository", "sentence"),
    [
        ("org/gated", "org/gated is gated"),
        ("org/weights-break-off", "org/weights-break-off"),
        ("org/config-is-html", "can't be read as JSON"),
        ("org/unknown", "The Hub has no model org/unknown"),
    ],
)
def test_a_hub_that_gives_nothing_of_use_is_named_by_inspect(
    repository: str, sentence: str, endpoint: str, tmp_path: Path
) -> None:
    completed = run_with("inspect", repository, endpoint=endpoint, cache=tmp_path)

    assert completed.returncode == 3
    assert completed.stdout == ""
    assert completed.stderr.startswith("error: ")
    assert sentence in completed.stderr
    assert completed.stderr.count("\nhint: ") == 1
    assert "Traceback" not in completed.stderr
