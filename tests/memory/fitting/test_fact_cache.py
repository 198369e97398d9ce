"""Facts on disk: found again by what they depend on, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import grimp
import pytest

import moetool
from moetool.catalogue.gpus import find_gpu
from moetool.memory.fitting import fact_cache
from moetool.memory.fitting.fact_cache import FactCache, find_cache_folder
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.scenario import Scenario

MODEL = "mixtral-8x7b"
GPU = find_gpu("h200")
SCENARIO = Scenario()
FACTS = RunFacts(is_weighed=True, weights_bytes=7, limited_bytes={"9": None})


@pytest.fixture
def cache(tmp_path: Path) -> FactCache:
    cache = FactCache(tmp_path / "cache")
    cache.write_facts(MODEL, GPU, SCENARIO, FACTS)
    return cache


def find_file(cache: FactCache) -> Path:
    assert cache.folder is not None
    (path,) = cache.folder.rglob("*.json")
    return path


def test_facts_are_read_as_they_were_written(cache: FactCache) -> None:
    assert cache.read_facts(MODEL, GPU, SCENARIO) == FACTS
    assert find_file(cache).name.startswith("mixtral-8x7b-")
    assert cache.read_size(MODEL) is None
    cache.write_size(MODEL, ModelSize(46, 12, 4096))
    assert cache.read_size(MODEL) == ModelSize(46, 12, 4096)


def test_they_hold_for_gpus_of_the_same_kind_whatever_their_memory(cache: FactCache) -> None:
    assert cache.read_facts(MODEL, find_gpu("h100-sxm"), SCENARIO) == FACTS
    assert cache.read_facts(MODEL, find_gpu("rtx-4090"), SCENARIO) is None


def test_they_do_not_hold_for_another_scenario_or_model(cache: FactCache) -> None:
    assert cache.read_facts(MODEL, GPU, replace(SCENARIO, batch_size=2)) is None
    assert cache.read_facts("mixtral-8x22b", GPU, SCENARIO) is None


@pytest.mark.parametrize("name", ["_hash_code", "_find_versions"])
def test_they_do_not_hold_for_other_code(
    name: str, cache: FactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fact_cache, name, lambda: "other")
    assert cache.read_facts(MODEL, GPU, SCENARIO) is None


def test_all_code_that_finds_facts_is_what_they_hold_for() -> None:
    package = Path(moetool.__file__).parent
    graph = grimp.build_graph("moetool", exclude_type_checking_imports=True, cache_dir=None)
    imported = graph.find_upstream_modules("moetool.memory.fitting.worker") - {"moetool"}
    hashed = {
        ".".join(("moetool", *path.relative_to(package).with_suffix("").parts))
        for path in fact_cache._list_code(package)
    }
    assert {"moetool.process.quiet", "moetool.memory.fitting.simulated_model"} <= imported
    assert imported <= {name.removesuffix(".__init__") for name in hashed}
    assert not any(name.startswith(("moetool.cli", "moetool.report")) for name in hashed)


def test_facts_that_another_process_has_kept_stay(cache: FactCache) -> None:
    more = RunFacts(total_bytes=9, limited_bytes={"5": 4}, prompt_bytes={"64": 8})
    cache.write_facts(MODEL, GPU, SCENARIO, more)
    assert cache.read_facts(MODEL, GPU, SCENARIO) == RunFacts(
        is_weighed=True,
        weights_bytes=7,
        total_bytes=9,
        limited_bytes={"9": None, "5": 4},
        prompt_bytes={"64": 8},
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff", b"{}" * 10])
def test_a_broken_file_counts_as_missing(content: bytes, cache: FactCache) -> None:
    find_file(cache).write_bytes(content)
    assert cache.read_facts(MODEL, GPU, SCENARIO) is None


def test_a_file_with_other_contents_counts_as_missing(cache: FactCache) -> None:
    path = find_file(cache)
    entry = json.loads(path.read_text(encoding="utf-8"))
    changes: list[dict[str, object]] = [
        {"key": {}},
        {"facts": {}},
        {"facts": {**entry["facts"], "total_bytes": "1"}},
    ]
    for change in changes:
        path.write_text(json.dumps(entry | change), encoding="utf-8")
        assert cache.read_facts(MODEL, GPU, SCENARIO) is None
    cache.write_facts(MODEL, GPU, SCENARIO, FACTS)
    assert cache.read_facts(MODEL, GPU, SCENARIO) == FACTS


def test_without_a_folder_nothing_is_kept() -> None:
    cache = FactCache(None)
    cache.write_facts(MODEL, GPU, SCENARIO, FACTS)
    assert cache.read_facts(MODEL, GPU, SCENARIO) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here", encoding="utf-8")
    FactCache(tmp_path / "file").write_facts(MODEL, GPU, SCENARIO, FACTS)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "here"


def test_the_folder_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOETOOL_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / "moetool"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / ".cache" / "moetool"
    monkeypatch.setattr("sys.platform", "darwin")
    assert find_cache_folder() == tmp_path / "Library" / "Caches" / "moetool"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert find_cache_folder() == tmp_path / "local" / "moetool"
    monkeypatch.setenv("MOETOOL_CACHE", "/else/where")
    assert find_cache_folder() == Path("/else/where")
