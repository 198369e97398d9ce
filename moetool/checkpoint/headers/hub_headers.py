"""The tensors and the configuration of a Hub repository, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moetool.checkpoint.config import first_line
from moetool.checkpoint.files import read_json
from moetool.checkpoint.headers.deadline import Deadline, within_deadline
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.checkpoint.headers.remote_header import read_remote_header
from moetool.checkpoint.headers.tensor_headers import TensorHeaders, join_headers
from moetool.checkpoint.headers.weight_files import (
    MissingWeightsError,
    WeightFiles,
    choose_weight_files,
    list_some,
)
from moetool.checkpoint.hub import refuse_if_certain, unreachable_hub
from moetool.checkpoint.layouts.kinds import name_layout
from moetool.errors import InputError

_CONFIG = "config.json"

# The number of parallel downloads in huggingface_hub.
_NUM_THREADS = 8

# The time limit for all requests, in multiples of huggingface_hub's limit for a single byte (ten
# seconds unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise).
_NUM_TIMEOUTS = 12


@dataclass(frozen=True)
class HubHeaders:
    """A model on the Hub as its configuration and the headers of its weight files describe it.

    Attributes:
        headers: The tensors in the weight files; None if there are none, if they were not asked
            for, or if the Hub can't be reached and they are not all in the local cache.
        config: Its config.json, unchanged.
        commit: The commit hash.
        is_cached: Whether the Hub could not be reached and all of this is from the local cache.
    """

    headers: TensorHeaders | None
    config: dict[str, object]
    commit: str
    is_cached: bool


def read_hub_headers(hub_id: str, *, revision: str | None, with_weights: bool = True) -> HubHeaders:
    """Return a Hub repository's tensors, by range requests, and its configuration.

    If the Hub does not answer, the local cache is used. Weight files in the cache are read there.

    Args:
        hub_id: `org/name`.
        revision: A branch, tag or commit; None is the default branch.
        with_weights: Whether to read the headers of the weight files.

    Raises:
        InputError: The repository, the revision or the Hub can't be reached, or the answer is
            broken.
    """
    from huggingface_hub import HfApi, constants

    limit_s = _NUM_TIMEOUTS * constants.HF_HUB_DOWNLOAD_TIMEOUT
    with within_deadline(num_threads=_NUM_THREADS, limit_s=limit_s) as deadline:
        try:
            info = deadline.call(
                lambda: HfApi().model_info(
                    hub_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
            )
            commit, names = _read_listing(info.sha, info.siblings)
        except Exception as error:  # noqa: BLE001  the Hub's HTTP library may raise anything
            refuse_if_certain(error, hub_id=hub_id, revision=revision)
            return _read_cached(hub_id, revision=revision, with_weights=with_weights, error=error)
        repository = _Repository(hub_id, revision, commit, frozenset(names))
        try:
            return _read_online(repository, deadline, with_weights=with_weights)
        except InputError:
            raise
        except Exception as error:
            refuse_if_certain(error, hub_id=hub_id, revision=revision)
            raise InputError(
                f"The Hub's answers about {hub_id} are incomplete or make no sense.",
                hint="Run the same command again, or name a local folder.",
                facts=[f"seen: {first_line(error)}"],
            ) from error


@dataclass(frozen=True)
class _Repository:
    """A commit of a repository, the revision that was asked for, and the names of its files."""

    hub_id: str
    revision: str | None
    commit: str
    names: frozenset[str]


def _read_listing(sha: object, siblings: object) -> tuple[str, list[str]]:
    """Return the commit hash and the names of the files in the Hub's description."""
    if not isinstance(sha, str) or not isinstance(siblings, list):
        raise ValueError("no commit hash and files in the description of the repository")
    return sha, [str(sibling.rfilename) for sibling in siblings]


def _read_online(repository: _Repository, deadline: Deadline, *, with_weights: bool) -> HubHeaders:
    if _CONFIG not in repository.names:
        raise _without_config(repository)
    path = _download(_CONFIG, repository, deadline)
    config = read_json(path, missing=f"'{path}' vanished.")
    headers = _read_weights(repository, deadline, path.parent) if with_weights else None
    return HubHeaders(headers, config, repository.commit, is_cached=False)


def _without_config(repository: _Repository) -> InputError:
    hub_id = repository.hub_id
    files = sorted(name for name in repository.names if name.endswith(".gguf"))
    if files:
        return InputError(
            f"{hub_id} holds no config.json: its models are GGUF files.",
            hint=f"Name one of them, such as {hub_id}/{files[0]}.",
            facts=[f"seen: {list_some(files)}"],
        )
    layout = name_layout([name for name in repository.names if "/" not in name])
    if layout is None or not layout.is_read:
        return InputError(
            f"{hub_id} holds no config.json{f': it is {layout.name}' if layout else ''}.",
            hint="Name the repository of the original checkpoint, in Hugging Face format.",
        )
    return InputError(
        f"{hub_id} holds no config.json: it is {layout.name}, which is read on this machine only.",
        hint=f"Run `hf download {hub_id} --local-dir FOLDER`; `moetool inspect FOLDER` counts it.",
    )


def _read_weights(
    repository: _Repository, deadline: Deadline, folder: Path
) -> TensorHeaders | None:
    """Return the tensors of a repository's weight files, some of which may be in `folder`."""

    def read_index(name: str) -> dict[str, object]:
        path = _download(name, repository, deadline)
        return read_json(path, missing=f"'{path}' vanished.")

    try:
        files = choose_weight_files(
            [name for name in repository.names if "/" not in name],
            label=repository.hub_id,
            is_present=repository.names.__contains__,
            read_index=read_index,
        )
    except MissingWeightsError as error:
        raise InputError(
            error.message,
            hint="Name another repository: this one is incomplete.",
            facts=error.facts,
        ) from error
    if not files.names:
        return None
    if all((folder / name).is_file() for name in files.names):
        return read_local_headers(folder)
    files.check_safetensors(
        repository.hub_id,
        hint=f"Run `hf download {repository.hub_id}` and name the folder, where their headers are "
        "read; or count by the configuration: --source skeleton.",
    )
    return _read_ranges(files, repository, deadline)


def _read_ranges(files: WeightFiles, repository: _Repository, deadline: Deadline) -> TensorHeaders:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: Mapping[str, str] = build_hf_headers()

    def read_one(name: str) -> TensorHeaders:
        url = hf_hub_url(repository.hub_id, name, revision=repository.commit)
        return read_remote_header(
            url, headers=headers, file=name, path=f"{repository.hub_id}/{name}"
        )

    parts = deadline.call_all(read_one, files.names)
    return join_headers(parts, weight_map=files.weight_map, label=repository.hub_id)


def _download(name: str, repository: _Repository, deadline: Deadline) -> Path:
    """Return the path of a small file of a repository in the local cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    def download() -> str:
        # Checked beforehand, because a download would wait minutes for an answer.
        get_hf_file_metadata(hf_hub_url(repository.hub_id, name, revision=repository.commit))
        # Not by commit, because only a revision asked for by name is found by that name offline.
        return hf_hub_download(repository.hub_id, name, revision=repository.revision)

    path = Path(deadline.call(download))
    if path.parent.name != repository.commit:
        raise InputError(
            f"{repository.hub_id} changed while it was being read.",
            hint="Run the same command again.",
        )
    return path


def _read_cached(
    hub_id: str, *, revision: str | None, with_weights: bool, error: Exception
) -> HubHeaders:
    """Return the copy of a repository in the local cache, after the Hub did not answer."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub_id, _CONFIG, revision=revision)
    if not isinstance(path, str):
        raise unreachable_hub(error, hub_id=hub_id) from error
    folder = Path(path).parent
    config = read_json(Path(path), missing=f"'{path}' vanished.")
    headers = None
    if with_weights:
        try:
            headers = read_local_headers(folder)
        except MissingWeightsError:
            # Only the index is cached.
            headers = None
    return HubHeaders(headers, config, folder.name, is_cached=True)
