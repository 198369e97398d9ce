"""Checkpoint folders whose files are complete and readable."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moetool.checkpoint.headers.safetensors_header import read_header
from moetool.checkpoint.headers.weight_files import WeightFiles, choose_weight_files
from moetool.checkpoint.hub import download_snapshot
from moetool.checkpoint.layouts.kinds import without_config
from moetool.checkpoint.reference import ModelKind, ModelReference
from moetool.checkpoint.size_limits import check_settings, find_size_limit
from moetool.checkpoint.strict_json import JsonError, parse_json
from moetool.errors import InputError
from moetool.git_lfs import POINTER_START, refuse_pointer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        name: The model as the user named it.
        folder: The folder with its files.
        revision: The commit hash on the Hub; None for a local folder.
    """

    name: str
    folder: Path
    revision: str | None


def open_checkpoint(
    reference: ModelReference,
    *,
    revision: str | None = None,
    with_code: bool = False,
    announce: Callable[[str], None],
) -> Checkpoint:
    """Return the checkpoint that a reference names, downloaded if necessary, with checked files.

    Args:
        reference: What the user named.
        revision: Branch, tag or commit, for Hub ids.
        with_code: Also fetch the repository's own Python files.
        announce: Called with one line before weights are downloaded.

    Raises:
        InputError: The reference has no weights, or a file is missing or broken.
        UsageError: A revision was given for something that is not on the Hub.
    """
    revision = reference.choose_revision(revision)
    match reference.kind:
        case ModelKind.PUBLISHED:
            raise InputError(
                f"'{reference.text}' is a catalogue name: a published configuration without weights.",
                hint=f"Its weights are on the Hub: name {reference.hub_id} instead.",
            )
        case ModelKind.REPORTED:
            raise InputError(
                f"'{reference.text}' is known from reports alone: its weights are not public.",
                hint="Name a model with open weights; run `moetool models` to list some.",
            )
        case ModelKind.CONFIG:
            raise InputError(
                f"'{reference.text}' is a configuration: it has no weights to run.",
                hint="Name the folder that holds config.json and the weights.",
            )
        case ModelKind.WEIGHTS:
            raise InputError(
                f"'{reference.text}' is a file of weights, without the model that they belong to.",
                hint="Name the folder that holds config.json and the weights.",
            )
        case ModelKind.GGUF | ModelKind.HUB_GGUF:
            raise InputError(
                f"'{reference.text}' is a GGUF file, which only llama.cpp runs.",
                hint="Name the original checkpoint: a folder or a Hub id with config.json and "
                "safetensors.",
            )
        case ModelKind.HUB:
            assert reference.hub_id is not None
            folder, commit = download_snapshot(
                reference.hub_id, revision=revision, with_code=with_code, announce=announce
            )
            checkpoint = Checkpoint(name=reference.text, folder=folder, revision=commit)
        case ModelKind.FOLDER:
            assert reference.path is not None
            checkpoint = Checkpoint(name=reference.text, folder=reference.path, revision=None)
    check_files(checkpoint.folder)
    return checkpoint


def check_files(folder: Path) -> None:
    """Check that a folder holds a readable config.json and complete weight files.

    Raises:
        InputError: A file is missing or broken. The message names it.
    """
    if not os.path.isfile(folder / "config.json"):
        raise without_config(folder)
    read_json(folder / "config.json", missing="")
    check_settings(folder)
    for path in list_weight_files(folder):
        if path.suffix == ".safetensors":
            read_header(path, file=path.name)
        else:
            _check_fetched(path)


def _check_fetched(path: Path) -> None:
    """Check that a file of pickled weights is not a pointer of Git LFS.

    A file that can't be opened is refused when it is loaded.

    Raises:
        InputError: It is one.
    """
    with suppress(OSError), path.open("rb") as file:
        refuse_pointer(file.read(len(POINTER_START)), path=path)


def list_weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint folder, all of which exist.

    Raises:
        InputError: There are none, or the index names files that are missing.
    """
    names = find_weight_files(folder).names
    if not names:
        raise InputError(
            f"'{folder}' holds a config.json but no weights.",
            hint="Routing needs the trained weights: put model.safetensors next to config.json.",
        )
    return [folder / name for name in names]


def find_weight_files(folder: Path) -> WeightFiles:
    """Return the weight files of a checkpoint folder: none, or all of them.

    Raises:
        InputError: The folder can't be read, or its index is broken or names files that are missing.
    """
    try:
        names = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    except OSError as error:
        raise InputError(
            f"'{folder}' can't be read.",
            hint="Name a folder in Hugging Face format that you may read.",
            facts=[f"seen: {error.strerror}"],
        ) from error
    return choose_weight_files(
        names,
        label=str(folder),
        is_present=lambda name: os.path.isfile(folder / name),
        read_index=lambda name: read_json(folder / name, missing=f"'{folder}' lost its {name}."),
    )


def read_json(path: Path, *, missing: str) -> dict[str, object]:
    """Return the JSON object in a file, by the rules of `strict_json`.

    Raises:
        InputError: The file is missing (then `missing` is the message), unreadable or far too large,
            or is not a JSON object that every reader understands alike.
    """
    # os.path returns False where pathlib raises, for example below a folder without permission.
    if not os.path.isfile(path):
        raise InputError(missing, hint="Name a folder in Hugging Face format.")
    try:
        limit = find_size_limit(path.name)
        limit.check_size(path.stat().st_size)
        content = path.read_bytes()
        refuse_pointer(content, path=path)
        limit.check_values(content)
        value = parse_json(content)
    except (JsonError, OSError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise InputError(
            f"'{path}' can't be read as JSON: {reason}.", hint="Download or write the file again."
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"'{path}' holds no JSON object.", hint="Download or write the file again."
        )
    return value
