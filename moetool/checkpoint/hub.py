"""Local snapshots of Hub repositories, through huggingface_hub's cache, tokens and settings."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from moetool.catalogue.names import find_published_name
from moetool.errors import InputError

# What transformers reads: configuration, tokenizer, chat template, weights.
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_CODE_FILES = ["*.py"]
# Copies of the weights in the formats of other programs (gpt-oss's original/ and metal/, Mistral's
# consolidated files), as large as the files that transformers reads.
_OTHER_PROGRAMS = ["*/*", "consolidated*"]


class UnreachableHubError(InputError):
    """The Hub does not answer, and the repository is not in the local cache."""


def download_snapshot(
    hub_id: str,
    *,
    revision: str | None,
    with_code: bool,
    announce: Callable[[str], None],
) -> tuple[Path, str]:
    """Return the local folder and the commit hash of a Hub repository, downloaded as needed.

    Safetensors are preferred; other weight formats are fetched only where there are none.

    Args:
        hub_id: `org/name`.
        revision: A branch, tag or commit; None is the default branch.
        with_code: Also fetch the repository's Python files.
        announce: Called before the download with one line that says how large it is.

    Raises:
        InputError: The repository, the revision or the Hub can't be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_SMALL_FILES, *(_CODE_FILES if with_code else [])]
    try:
        info = HfApi().model_info(
            hub_id, revision=revision, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT
        )
    except Exception as error:  # noqa: BLE001  the Hub's HTTP library may raise anything
        refuse_if_certain(error, hub_id=hub_id, revision=revision)
        # A snapshot counts as cached if it has every file that these patterns match. Weights in
        # other formats are in the same folder if an earlier run fetched them.
        cached = [*patterns, "*.safetensors"]
        try:
            folder = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    allow_patterns=cached,
                    ignore_patterns=_OTHER_PROGRAMS,
                    local_files_only=True,
                )
            )
        except LocalEntryNotFoundError:
            raise _without_weights(unreachable_hub(error, hub_id=hub_id), hub_id) from error
        return folder, folder.name

    files = [
        file
        for file in info.siblings or []
        if not any(fnmatch(file.rfilename, pattern) for pattern in _OTHER_PROGRAMS)
    ]
    suffix = ".safetensors"
    if not any(file.rfilename.endswith(suffix) for file in files):
        suffix = ".bin"
    weights = [file for file in files if file.rfilename.endswith(suffix)]
    num_bytes = sum(file.size or 0 for file in weights)
    size = f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
    announce(f"{hub_id}@{(info.sha or 'main')[:8]}: {size} of weights, unless already cached")
    try:
        # Not by commit, because only a revision asked for by name is found by that name offline.
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=[*patterns, f"*{suffix}"],
                ignore_patterns=_OTHER_PROGRAMS,
            )
        )
    except Exception as error:
        refuse_if_certain(error, hub_id=hub_id, revision=revision)
        raise InputError(
            f"The download of {hub_id} was interrupted.",
            hint="Run the same command again; it continues with the files that are missing.",
            facts=[f"seen: {str(error).splitlines()[0]}"] if str(error) else (),
        ) from error
    return folder, folder.name


def _without_weights(error: UnreachableHubError, hub_id: str) -> UnreachableHubError:
    """Return the error with a hint at what is possible without weights."""
    name = find_published_name(hub_id)
    if name is None:
        return error
    return UnreachableHubError(
        error.message,
        hint=f"Run `hf download {hub_id}` where the Hub answers, or name a local folder; only "
        "`inspect` and `memory-estimate` do without weights.",
        facts=error.facts,
    )


def unreachable_hub(error: Exception, *, hub_id: str) -> UnreachableHubError:
    """Return the error for a repository that is not cached while the Hub does not answer."""
    return UnreachableHubError(
        f"Can't reach the Hub for {hub_id}, and it is not in the local cache.",
        hint="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a local folder.",
        facts=[
            f"seen: no folder '{hub_id}' here either",
            *([f"seen: {str(error).splitlines()[0]}"] if str(error) else []),
        ],
    )


def refuse_if_certain(error: Exception, *, hub_id: str, revision: str | None) -> None:
    """Raise an error if the Hub answered with a refusal; return if it did not answer at all.

    Raises:
        InputError: The repository is gated, or it or its revision does not exist.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        raise InputError(
            f"'{hub_id}' is not a name that the Hub allows.",
            hint="Hub ids look like org/name, for example Qwen/Qwen3-30B-A3B.",
        ) from error
    # GatedRepoError is a subclass of RepositoryNotFoundError, so it comes first.
    if isinstance(error, GatedRepoError):
        name = find_published_name(hub_id)
        raise InputError(
            f"{hub_id} is gated: its owner must grant access first.",
            hint="Ask for access on its Hub page, then run `hf auth login`"
            + (f"; or name {name}, whose configuration ships with moetool." if name else "."),
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise InputError(
            f"The Hub has no model {hub_id}, or it is private.",
            hint="Check the spelling, or run `hf auth login` for a private one.",
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise InputError(
            f"{hub_id} has no revision '{revision}'.",
            hint="Name a branch, a tag or a commit hash of that repository.",
        ) from error
