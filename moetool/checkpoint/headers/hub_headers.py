"""From a Hub id to the tensors in its weight files and its configuration, without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moetool.checkpoint.config import first_line
from moetool.checkpoint.files import read_json
from moetool.checkpoint.headers.deadline import Patience, have_patience
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.checkpoint.headers.remote_header import read_remote_header
from moetool.checkpoint.headers.tensor_headers import TensorHeaders, join_headers
from moetool.checkpoint.headers.weight_files import (
    MissingWeightsError,
    WeightFiles,
    choose_weight_files,
)
from moetool.checkpoint.hub import refuse_if_certain, unreachable_hub
from moetool.errors import InputError

_CONFIG = "config.json"

# As many files at once as huggingface_hub asks for.
_NUM_THREADS = 8

# What huggingface_hub waits for one byte, ten seconds unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise,
# is waited this many times over for everything.
_NUM_TIMEOUTS = 12


@dataclass(frozen=True)
class HubHeaders:
    """What a repository on the Hub tells of a model without its weights.

    Attributes:
        headers: The tensors in its weight files; None if it holds none, if they were not asked
            for, or if the Hub can't be reached and not all of them are in the local cache.
        config: Its config.json, as it stands there.
        commit: The commit hash.
        is_cached: Whether the Hub could not be reached and all of this is from the local cache.
    """

    headers: TensorHeaders | None
    config: dict[str, object]
    commit: str
    is_cached: bool


def read_hub_headers(hub_id: str, *, revision: str | None, with_weights: bool = True) -> HubHeaders:
    """Return a Hub repository's tensors, by range requests, and its configuration.

    Where the Hub gives no answer, the local cache does. Weight files that lie in the cache are read
    there.

    Args:
        hub_id: `org/name`.
        revision: A branch, tag or commit; None is the default branch.
        with_weights: Whether to read the headers of the weight files.

    Raises:
        InputError: The repository, the revision or the Hub can't be reached, or what comes from
            there is broken.
    """
    from huggingface_hub import HfApi, constants

    limit_s = _NUM_TIMEOUTS * constants.HF_HUB_DOWNLOAD_TIMEOUT
    with have_patience(num_threads=_NUM_THREADS, limit_s=limit_s) as patience:
        try:
            info = patience.call(
                lambda: HfApi().model_info(
                    hub_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
            )
            commit, names = _read_listing(info.sha, info.siblings)
        except Exception as error:  # noqa: BLE001  the HTTP library behind the Hub is its own affair
            refuse_if_certain(error, hub_id=hub_id, revision=revision)
            return _read_cached(hub_id, revision=revision, with_weights=with_weights, error=error)
        repository = _Repository(hub_id, revision, commit, frozenset(names))
        try:
            return _read_online(repository, patience, with_weights=with_weights)
        except InputError:
            raise
        except Exception as error:
            refuse_if_certain(error, hub_id=hub_id, revision=revision)
            raise InputError(
                f"The Hub's answers about {hub_id} broke off or make no sense.",
                hint="Run the same command again, or name a local folder.",
                facts=[f"seen: {first_line(error)}"],
            ) from error


@dataclass(frozen=True)
class _Repository:
    """A commit of a repository, the name it was asked for by, and the names of its files."""

    hub_id: str
    revision: str | None
    commit: str
    names: frozenset[str]


def _read_listing(sha: object, siblings: object) -> tuple[str, list[str]]:
    """Return the commit hash and the names of the files in the Hub's description."""
    if not isinstance(sha, str) or not isinstance(siblings, list):
        raise ValueError("no commit hash and files in the description of the repository")
    return sha, [str(sibling.rfilename) for sibling in siblings]


def _read_online(repository: _Repository, patience: Patience, *, with_weights: bool) -> HubHeaders:
    if _CONFIG not in repository.names:
        raise InputError(
            f"{repository.hub_id} holds no config.json.",
            hint="Name the repository of the original checkpoint, in Hugging Face format.",
        )
    path = _download(_CONFIG, repository, patience)
    config = read_json(path, missing=f"'{path}' vanished.")
    headers = _read_weights(repository, patience, path.parent) if with_weights else None
    return HubHeaders(headers, config, repository.commit, is_cached=False)


def _read_weights(
    repository: _Repository, patience: Patience, folder: Path
) -> TensorHeaders | None:
    """Return the tensors of a repository's weight files, of which `folder` may hold some."""

    def read_index(name: str) -> dict[str, object]:
        path = _download(name, repository, patience)
        return read_json(path, missing=f"'{path}' vanished.")

    try:
        files = choose_weight_files(
            [name for name in repository.names if "/" not in name],
            place=repository.hub_id,
            is_present=repository.names.__contains__,
            read_index=read_index,
        )
    except MissingWeightsError as error:
        raise InputError(
            error.message, hint="Name another repository: this one is not whole.", facts=error.facts
        ) from error
    if not files.names:
        return None
    files.check_safetensors(repository.hub_id)
    if all((folder / name).is_file() for name in files.names):
        return read_local_headers(folder)
    return _read_ranges(files, repository, patience)


def _read_ranges(files: WeightFiles, repository: _Repository, patience: Patience) -> TensorHeaders:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: Mapping[str, str] = build_hf_headers()

    def read_one(name: str) -> TensorHeaders:
        url = hf_hub_url(repository.hub_id, name, revision=repository.commit)
        return read_remote_header(
            url, headers=headers, file=name, path=f"{repository.hub_id}/{name}"
        )

    parts = patience.call_all(read_one, files.names)
    return join_headers(parts, weight_map=files.weight_map, place=repository.hub_id)


def _download(name: str, repository: _Repository, patience: Patience) -> Path:
    """Return the path of a small file of a repository in the local cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    def download() -> str:
        # Asked beforehand, since a download would try for minutes to get an answer.
        get_hf_file_metadata(hf_hub_url(repository.hub_id, name, revision=repository.commit))
        # Not by commit: only a branch or tag asked for by name is found by it again offline.
        return hf_hub_download(repository.hub_id, name, revision=repository.revision)

    path = Path(patience.call(download))
    if path.parent.name != repository.commit:
        raise InputError(
            f"{repository.hub_id} changed while it was read.", hint="Run the same command again."
        )
    return path


def _read_cached(
    hub_id: str, *, revision: str | None, with_weights: bool, error: Exception
) -> HubHeaders:
    """Return what the local cache holds of a repository, since the Hub gave no answer."""
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
            # Only the index is cached: that there are weights is all it tells.
            headers = None
    return HubHeaders(headers, config, folder.name, is_cached=True)
