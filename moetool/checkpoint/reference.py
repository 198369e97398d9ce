"""References to models: the `MODEL` that a user typed, resolved without the network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from moetool.catalogue.names import DEMO, demo_folder, find_near_names
from moetool.catalogue.published import read_published_models, read_reported_systems
from moetool.checkpoint.gguf.files import has_gguf_only
from moetool.checkpoint.layouts.kinds import PICKLED_SUFFIXES
from moetool.choices import take_text
from moetool.errors import InputError, UsageError
from moetool.wording import join_words

# The Hub's own rule for repository ids, with the organisation required.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*")
_ID_HINT = "Hub ids look like org/name, for example Qwen/Qwen3-30B-A3B."

_HUB_SITES = ("huggingface.co", "www.huggingface.co", "hf.co")
# Sites that hold copies of its repositories, under the same ids.
_COPIES = {"modelscope.": "ModelScope", "hf-mirror.com": "hf-mirror.com"}
# Of a repository, each followed by a revision and perhaps a path: of a file, of a folder.
_FILE_PAGES = ("blob", "resolve", "raw", "blame")
_PAGES_WITH_REVISION = (*_FILE_PAGES, "tree", "commit", "commits")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_MAIN = "main"
_NOT_MODELS = ("datasets", "spaces", "docs", "collections")
_EXAMPLE = "https://huggingface.co/Qwen/Qwen3-30B-A3B"

_PROMPT_SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")
_WEIGHT_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES)
_GGUF_SUFFIX = ".gguf"
_FILE_SUFFIXES = (".json", ".safetensors", _GGUF_SUFFIX, *_PROMPT_SUFFIXES)
_MOST_NAMES = 5


class ModelKind(Enum):
    """The kind of thing that a model reference names."""

    FOLDER = "folder"
    CONFIG = "config.json"
    HUB = "Hub id"
    PUBLISHED = "catalogue name"
    REPORTED = "name of a system known from reports"
    GGUF = "GGUF file"
    HUB_GGUF = "GGUF file on the Hub"
    WEIGHTS = "file of weights"


@dataclass(frozen=True)
class ModelReference:
    """A model someone named.

    Attributes:
        text: The name as typed; for a web address, the Hub id in it.
        kind: What the name stands for.
        path: The folder, the config.json, the GGUF file or the file of weights; None for all others.
        hub_id: `org/name` on the Hub; None for local paths and reported systems.
        revision: The branch, tag or commit in a web address; None if it names none, or `main`.
        file: The path of a GGUF file in its repository; None for all others.
    """

    text: str
    kind: ModelKind
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    file: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a model of llama.cpp's format."""
        return self.kind in (ModelKind.GGUF, ModelKind.HUB_GGUF)

    def choose_revision(self, asked: str | None) -> str | None:
        """Return the revision to read: the one asked for, or else that of the web address.

        Raises:
            UsageError: One is asked for of something that is not a Hub id, or that the web address
                contradicts.
        """
        if asked is not None and self.kind not in (ModelKind.HUB, ModelKind.HUB_GGUF):
            raise UsageError(
                f"'{self.text}' is local: it has no revision '{asked}'.",
                hint="Leave out --revision, or name a Hub id.",
            )
        if asked is not None and self.revision not in (None, asked):
            raise UsageError(
                f"The address of {self.text} names the revision '{self.revision}', not '{asked}'.",
                hint=f"Leave out --revision, or name {self.text} alone.",
            )
        return asked or self.revision


def resolve_model(model: str | os.PathLike[str] | ModelReference) -> ModelReference:
    """Return the model that a text or a path names; a reference is returned as it is.

    It may be a folder, a config.json, a Hub id or the address of its page, a GGUF file in a Hub
    repository, `demo`, or a catalogue name: that of a published model or of a system known from
    reports. An existing path takes precedence over a Hub id of the same spelling. Nothing is downloaded or opened.

    Raises:
        InputError: It is none of these.
        UsageError: It is neither.
    """
    if isinstance(model, ModelReference):
        return model
    text = take_text(os.fspath(model) if isinstance(model, os.PathLike) else model, name="model")
    if not text.strip():
        raise InputError(
            "No model '': the name is empty.", hint="Name a folder, a Hub id, or 'demo'."
        )
    path = Path(text).expanduser()
    if text == DEMO:
        return ModelReference(text=text, kind=ModelKind.FOLDER, path=demo_folder())
    # os.path returns False where pathlib raises, for example for a text too long for a path.
    if os.path.isdir(path):
        _refuse_cache_folder(text, path)
        kind = ModelKind.GGUF if has_gguf_only(path) else ModelKind.FOLDER
        return ModelReference(text=text, kind=kind, path=path)
    if os.path.isfile(path):
        return _resolve_file(text, path)
    published = read_published_models()
    if text.lower() in published:
        hub_id = published[text.lower()].hub_id
        return ModelReference(text=text, kind=ModelKind.PUBLISHED, hub_id=hub_id)
    if text.lower() in read_reported_systems():
        return ModelReference(text=text, kind=ModelKind.REPORTED)
    address = _read_address(text)
    if address is not None:
        return address
    hub_file = _read_hub_file(text)
    if hub_file is not None:
        return hub_file
    hub_id = text.removesuffix("/")
    if _HUB_ID.fullmatch(hub_id) and not hub_id.endswith(_FILE_SUFFIXES):
        return ModelReference(text=hub_id, kind=ModelKind.HUB, hub_id=hub_id)
    raise _unknown_model(text)


def _read_address(text: str) -> ModelReference | None:
    """Return the model behind a web address; None for a text that is not a web address.

    Raises:
        InputError: The address leads elsewhere than to a model on the Hub.
    """
    whole = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(whole)
        site = parts.hostname or ""
    except ValueError:
        return None
    if parts.scheme.lower() == "hf":
        # The first part of such a path is where a host would be.
        path = whole.partition("://")[2].partition("?")[0]
    elif site in _HUB_SITES or site == urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname:
        path = parts.path
    elif "://" in text:
        raise _foreign_address(text, site, parts.path)
    else:
        return None
    names = [unquote(part) for part in path.split("/") if part]
    if names and names[0] == "models":
        del names[0]
    hub_id, _, revision = "/".join(names[:2]).partition("@")
    is_elsewhere = not names or names[0] in _NOT_MODELS
    if not is_elsewhere and len(names) == 1:
        raise InputError(
            f"'{text}' has one name after the site; moetool reads addresses with an organisation "
            "and a model.",
            hint=f"Name the organisation too, as in {_EXAMPLE}; the Hub leads from old addresses "
            "to such ones.",
        )
    if is_elsewhere or not _HUB_ID.fullmatch(hub_id):
        raise InputError(
            f"'{text}' is not the address of a model on the Hub.",
            hint=f"Name a model, as in {_EXAMPLE}.",
        )
    file = names[2:]
    if names[2:] and names[2] in _PAGES_WITH_REVISION and names[3:]:
        revision = _read_revision(text, hub_id, names[3:], is_file=names[2] in _FILE_PAGES)
        file = names[3 + revision.count("/") + 1 :]
    chosen = None if revision in ("", _MAIN) else revision
    if file and file[-1].endswith(_GGUF_SUFFIX):
        return _name_hub_file(hub_id, "/".join(file), revision=chosen)
    return ModelReference(text=hub_id, kind=ModelKind.HUB, hub_id=hub_id, revision=chosen)


def _read_hub_file(text: str) -> ModelReference | None:
    """Return the GGUF file that a Hub id and a path name, as in `org/name/file.gguf`."""
    *names, file = text.split("/", 2)
    hub_id = "/".join(names)
    is_path = file.endswith(_GGUF_SUFFIX) and not {"", ".", ".."} & set(file.split("/"))
    if not _HUB_ID.fullmatch(hub_id) or not is_path:
        return None
    return _name_hub_file(hub_id, file, revision=None)


def _name_hub_file(hub_id: str, file: str, *, revision: str | None) -> ModelReference:
    return ModelReference(
        text=f"{hub_id}/{file}",
        kind=ModelKind.HUB_GGUF,
        hub_id=hub_id,
        revision=revision,
        file=file,
    )


def _read_revision(text: str, hub_id: str, parts: Sequence[str], *, is_file: bool) -> str:
    """Return the revision at the beginning of some parts of an address; a path may follow it.

    Raises:
        InputError: Names of branches can hold slashes, so it is not clear where the revision ends.
    """
    if parts[0] == "refs":
        # Pull requests and conversions have revisions of three parts.
        return "/".join(parts[:3])
    num_unclear = len(parts) - is_file
    if num_unclear > 1 and parts[0] != _MAIN and not _COMMIT.fullmatch(parts[0]):
        raise InputError(
            f"'{text}' does not show where the name of the revision ends.",
            hint=f"Name {hub_id} with --revision {parts[0]} or --revision "
            f"{'/'.join(parts[:num_unclear])}.",
        )
    return parts[0]


def _foreign_address(text: str, site: str, path: str) -> InputError:
    """Return the error for an address that is not on the Hub, with the id that it may hold."""
    names = [part for part in path.split("/") if part and part != "models"]
    hub_id = "/".join(names[:2])
    name = next((_COPIES[known] for known in _COPIES if known in site), None)
    if name is not None and _HUB_ID.fullmatch(hub_id):
        return InputError(
            f"'{text}' is on {name}, which moetool does not read.",
            hint=f"Name {hub_id} if the Hugging Face Hub has it too, or a folder with its files.",
        )
    return InputError(
        f"'{text}' is not an address on the Hugging Face Hub.",
        hint="Name a Hub id (org/name), or a folder with the model's files.",
    )


def _refuse_cache_folder(text: str, path: Path) -> None:
    """Refuse the folder of a repository in the Hub's cache, whose files lie deeper.

    Raises:
        InputError: It is one.
    """
    kind, *names = path.name.split("--")
    if kind == "models" and len(names) == 2 and not os.path.exists(path / "config.json"):
        raise InputError(
            f"'{text}' is a folder of the Hub's cache, not a checkpoint.",
            hint=f"Name {'/'.join(names)}, or a folder in its snapshots.",
        )


def _resolve_file(text: str, path: Path) -> ModelReference:
    if path.suffix == ".json":
        return ModelReference(text=text, kind=ModelKind.CONFIG, path=path)
    if path.suffix == ".gguf":
        return ModelReference(text=text, kind=ModelKind.GGUF, path=path)
    if path.suffix in _WEIGHT_SUFFIXES:
        return ModelReference(text=text, kind=ModelKind.WEIGHTS, path=path)
    if path.suffix in _PROMPT_SUFFIXES:
        raise InputError(
            f"'{text}' is a file, but not a model.",
            hint=f"Name a model first, then prompts with --prompts {text}; `moetool specialize` "
            "reads traces.",
        )
    raise InputError(
        f"'{text}' is a file, but not a config.json.",
        hint="Name the folder that holds the checkpoint.",
    )


def _unknown_model(text: str) -> InputError:
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        return InputError(
            f"No model at '{text}': no such path, and not a Hub id.",
            hint=_ID_HINT,
        )
    if "," in text:
        return InputError(
            f"No model '{text}': no such path, and not a catalogue name.",
            hint="Separate several models by spaces.",
        )
    near = find_near_names(text)
    if len(near.beginning) > 1:
        do = "begin with" if near.beginning[0].startswith(text[0].lower()) else "contain"
        end = ", …" if len(near.beginning) > _MOST_NAMES else "."
        return InputError(
            f"No model '{text}': {len(near.beginning)} catalogue names {do} it.",
            hint=f"Name one of them: {', '.join(near.beginning[:_MOST_NAMES])}{end}",
        )
    meant = [f"'{name}'" for name in near.beginning or near.close]
    return InputError(
        f"No model '{text}': no such path, and not a catalogue name.",
        hint=f"Did you mean {join_words(meant, last='or')}?"
        if meant
        else "Name a folder, a Hub id such as Qwen/Qwen3-30B-A3B, or 'demo'.",
    )
