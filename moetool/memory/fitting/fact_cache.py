"""Facts about models in the user's cache folder, one file each."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import moetool
from moetool.catalogue.gpus import Gpu
from moetool.catalogue.published import read_published_config, read_published_models
from moetool.checkpoint.strict_json import JsonError, parse_json
from moetool.errors import MoetoolError
from moetool.memory.fitting.known_facts import (
    ModelSize,
    RunFacts,
    merge_facts,
    read_facts,
    read_size,
    write_facts,
    write_size,
)
from moetool.memory.gpu_overhead import find_workspace_bytes
from moetool.memory.scenario import Scenario
from moetool.output.targets import write_file

# Sub-packages of moetool that find facts, and those that they import.
_CODE = (
    *("anatomy", "catalogue", "checkpoint", "memory", "output", "process", "quantizing"),
    "simulation",
)
# Packages whose code models call, if they are installed.
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "causal-conv1d",
    "flash-linear-attention",
    "kernels",
    "mamba-ssm",
)
# Far larger than any file of facts.
_MOST_BYTES = 1_000_000


def find_cache_folder() -> Path:
    """Return moetool's folder for what can be computed again.

    The environment variable MOETOOL_CACHE names it. By default it lies where the system keeps its
    user's caches.
    """
    named = os.environ.get("MOETOOL_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "moetool"


@dataclass(frozen=True)
class FactCache:
    """Facts about the models of the catalogue, on disk.

    Entries hold for one configuration of a model and for these versions of moetool, torch and
    transformers. A file that can't be read counts as missing, and one that can't be written is left
    out.

    Attributes:
        folder: The folder of the files; None to keep nothing.
    """

    folder: Path | None

    def read_size(self, model: str) -> ModelSize | None:
        """Return a model's parameters and context; None if they are not known."""
        return read_size(self._read(_identify(model)))

    def write_size(self, model: str, size: ModelSize) -> None:
        """Keep a model's parameters and context."""
        self._write(_identify(model), write_size(size))

    def read_facts(self, model: str, gpu: Gpu, scenario: Scenario) -> RunFacts | None:
        """Return the facts about a model's runs on GPUs of a kind; None if nothing is known."""
        return read_facts(self._read(_identify_run(model, gpu, scenario)))

    def write_facts(self, model: str, gpu: Gpu, scenario: Scenario, facts: RunFacts) -> None:
        """Keep the facts about a model's runs, along with those that another process has kept."""
        known = self.read_facts(model, gpu, scenario)
        facts = facts if known is None else merge_facts(facts, known)
        self._write(_identify_run(model, gpu, scenario), write_facts(facts))

    def _read(self, key: Mapping[str, object]) -> object:
        if self.folder is None:
            return None
        try:
            with _find_path(self.folder, key).open("rb") as file:
                content = file.read(_MOST_BYTES)
            entry = parse_json(content)
        except (OSError, ValueError, JsonError):
            return None
        # A hash that two keys share is as good as impossible, and a file that was edited is not.
        if not isinstance(entry, dict) or entry.get("key") != json.loads(json.dumps(key)):
            return None
        return entry.get("facts")

    def _write(self, key: Mapping[str, object], facts: Mapping[str, object]) -> None:
        if self.folder is None:
            return
        path = _find_path(self.folder, key)
        with suppress(OSError, MoetoolError):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"key": key, "facts": facts}, indent=1) + "\n"
            write_file(content.encode(), path, replace_existing=True)


def _find_path(folder: Path, key: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / "fits" / f"{key['model']}-{digest[:16]}.json"


def _identify_run(model: str, gpu: Gpu, scenario: Scenario) -> dict[str, object]:
    """Return what the facts about runs depend on. Of a GPU, that is not its memory."""
    return {
        **_identify(model),
        "scenario": asdict(scenario),
        "compute_capability": gpu.compute_capability,
        "workspace_bytes": find_workspace_bytes(gpu),
    }


def _identify(model: str) -> dict[str, object]:
    published = read_published_models()[model]
    config = json.dumps(
        [
            read_published_config(model),
            [asdict(extra) for extra in published.extra_parameters],
            published.stored_as,
        ],
        sort_keys=True,
    )
    return {
        "model": model,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "moetool": moetool.__version__,
        "code": _hash_code(),
        "packages": _find_versions(),
    }


@cache
def _hash_code() -> str:
    """Return a hash of the code that finds facts, which changes more often than its version."""
    package = Path(moetool.__file__).parent
    digest = hashlib.sha256()
    for path in _list_code(package):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _list_code(package: Path) -> list[Path]:
    """Return the files of all code that finds facts, with moetool's own modules."""
    folders = [package / name for name in _CODE]
    return sorted(
        [*package.glob("*.py"), *(file for each in folders for file in each.rglob("*.py"))]
    )


@cache
def _find_versions() -> Mapping[str, str | None]:
    """Return the versions of the packages whose code runs in simulations; None if not installed."""

    def find(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: find(package) for package in _PACKAGES}
