"""GGUF models on the Hub, by requests for their headers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from moetool.checkpoint.config import first_line
from moetool.checkpoint.gguf.cursor import CHUNK_BYTES
from moetool.checkpoint.gguf.files import GgufModel, join_parts, open_gguf
from moetool.checkpoint.gguf.header import GgufHeader, parse_gguf_header
from moetool.checkpoint.headers.deadline import within_deadline
from moetool.checkpoint.headers.remote_header import read_range
from moetool.checkpoint.headers.weight_files import list_some
from moetool.checkpoint.hub import refuse_if_certain, unreachable_hub
from moetool.checkpoint.reference import ModelReference
from moetool.errors import InputError

# Most headers are shorter: vocabularies of 150,000 tokens take 6 MB.
_FIRST_BYTES = 2 * CHUNK_BYTES
# The time limit for all requests, in multiples of huggingface_hub's limit for a single byte.
_NUM_TIMEOUTS = 12


def open_named_gguf(reference: ModelReference, *, revision: str | None = None) -> GgufModel:
    """Return the headers of a GGUF model on this machine or on the Hub.

    Args:
        reference: What the user named.
        revision: Branch, tag or commit, for files on the Hub.

    Raises:
        InputError: A file is missing or broken, or the Hub can't be reached.
        UsageError: A revision is asked for of a local file.
    """
    revision = reference.choose_revision(revision)
    if reference.path is not None:
        return open_gguf(reference.path)
    hub_id, file = reference.hub_id, reference.file
    assert hub_id is not None
    assert file is not None
    return _open_hub_gguf(hub_id, file, revision=revision)


def _open_hub_gguf(hub_id: str, file: str, *, revision: str | None) -> GgufModel:
    from huggingface_hub import HfApi, constants

    limit_s = _NUM_TIMEOUTS * constants.HF_HUB_DOWNLOAD_TIMEOUT
    with within_deadline(num_threads=1, limit_s=limit_s) as deadline:
        try:
            info = deadline.call(
                lambda: HfApi().model_info(
                    hub_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
            )
            names = [str(sibling.rfilename) for sibling in info.siblings or ()]
            commit = str(info.sha)
        except Exception as error:  # noqa: BLE001  the Hub's HTTP library may raise anything
            refuse_if_certain(error, hub_id=hub_id, revision=revision)
            return _open_cached(hub_id, file, revision=revision, error=error)
        if file not in names:
            raise _without_file(hub_id, file, names)
        try:
            return deadline.call(lambda: _read_online(hub_id, file, commit=commit, names=names))
        except InputError:
            raise
        except Exception as error:
            refuse_if_certain(error, hub_id=hub_id, revision=revision)
            raise InputError(
                f"The Hub's answers about {hub_id} are incomplete or make no sense.",
                hint="Run the same command again, or download the file.",
                facts=[f"seen: {first_line(error)}"],
            ) from error


def _read_online(hub_id: str, file: str, *, commit: str, names: list[str]) -> GgufModel:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: Mapping[str, str] = build_hf_headers()
    folder = PurePosixPath(file).parent

    def read(path: Path) -> GgufHeader:
        url = hf_hub_url(hub_id, str(folder / path.name), revision=commit)
        return _read_remote_header(url, headers=headers, path=str(path))

    def is_present(path: Path) -> bool:
        return str(folder / path.name) in names

    return join_parts(Path(hub_id, file), read, is_present)


def _read_remote_header(url: str, *, headers: Mapping[str, str], path: str) -> GgufHeader:
    """Return the header of a file on a server, of which no more is read than that.

    Raises:
        InputError: The file is not a complete GGUF file.
        ValueError: The answer makes no sense.
    """
    content, file_bytes = read_range(url, headers=headers, start=0, stop=_FIRST_BYTES)
    return parse_gguf_header(
        _read_on(url, headers, bytearray(content), file_bytes), file_bytes=file_bytes, path=path
    )


def _read_on(
    url: str, headers: Mapping[str, str], content: bytearray, file_bytes: int
) -> Callable[[int, int], bytes]:
    """Return a function that returns bytes of a file, whose beginning was read before."""

    def read(start: int, stop: int) -> bytes:
        if stop > len(content):
            more, again = read_range(url, headers=headers, start=len(content), stop=stop)
            if again != file_bytes:
                raise ValueError(f"a file of {file_bytes} bytes, and then of {again}")
            content.extend(more)
        return bytes(content[start:stop])

    return read


def _open_cached(hub_id: str, file: str, *, revision: str | None, error: Exception) -> GgufModel:
    """Return the copy in the local cache, after the Hub did not answer."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub_id, file, revision=revision)
    if not isinstance(path, str):
        raise unreachable_hub(error, hub_id=hub_id) from error
    return open_gguf(Path(path))


def _without_file(hub_id: str, file: str, names: list[str]) -> InputError:
    others = [name for name in names if name.endswith(".gguf")]
    return InputError(
        f"{hub_id} holds no file '{file}'.",
        hint="Name one of its GGUF files." if others else "It holds no GGUF files: name another.",
        facts=[f"seen: {list_some(others)}"] if others else (),
    )
