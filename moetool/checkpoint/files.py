"""From a model reference to a checkpoint folder whose files are all there and readable."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moetool.checkpoint.hub import download_snapshot
from moetool.checkpoint.reference import ModelKind, ModelReference
from moetool.errors import InputError, UsageError

_WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PICKLED_WEIGHTS = "pytorch_model.bin"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        name: The model as the user named it.
        folder: Where its files are.
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
    """Return the checkpoint a reference names, downloaded if need be, its weight files checked.

    Args:
        reference: What the user named.
        revision: Branch, tag or commit, for Hub ids.
        with_code: Also fetch the repository's own Python files.
        announce: Told in one line before weights are downloaded.

    Raises:
        InputError: The reference has no weights, or a file is missing or broken.
        UsageError: A revision was given for something that is not on the Hub.
    """
    if revision is not None and reference.kind is not ModelKind.HUB:
        raise UsageError(
            f"'{reference.text}' is local: it has no revision '{revision}'.",
            hint="Leave --revision out, or name a Hub id.",
        )
    match reference.kind:
        case ModelKind.PUBLISHED:
            raise InputError(
                f"'{reference.text}' is a catalogue name: a published configuration without weights.",
                hint=f"Its weights are on the Hub: name {reference.hub_id} instead.",
            )
        case ModelKind.CONFIG:
            raise InputError(
                f"'{reference.text}' is a configuration: it has no weights to run.",
                hint="Name the folder that holds config.json and the weights.",
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
    """Check that a folder holds a readable config.json and whole weight files.

    Raises:
        InputError: Naming the file that is missing or broken.
    """
    read_json(folder / "config.json", missing=f"'{folder}' holds no config.json.")
    for path in list_weight_files(folder):
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def list_weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint folder, all of which exist.

    Raises:
        InputError: There are none, or the index names files that are missing.
    """
    for index in (folder / name for name in _WEIGHT_INDEXES):
        if index.is_file():
            weight_map = read_json(index, missing="").get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) for name in weight_map.values()
            ):
                raise InputError(
                    f"'{index}' has no weight_map of names.",
                    hint="Download the file again: it is broken.",
                )
            paths = [folder / name for name in sorted(set(weight_map.values()))]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise InputError(
                    f"'{folder}' lacks {len(missing)} of its {len(paths)} weight files.",
                    hint="Download the missing files into the folder.",
                    facts=[f"missing: {', '.join(missing[:3])}{', …' if missing[3:] else ''}"],
                )
            return paths
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob(_PICKLED_WEIGHTS))
    if not paths:
        raise InputError(
            f"'{folder}' holds a config.json but no weights.",
            hint="Routing needs the trained weights: put model.safetensors beside config.json.",
        )
    return paths


def read_json(path: Path, *, missing: str) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        InputError: The file is missing (with the sentence given) or holds no JSON object.
    """
    if not path.is_file():
        raise InputError(missing, hint="Name a folder in Hugging Face format.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"'{path}' can't be read as JSON: {error}.", hint="Download or write the file again."
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"'{path}' holds no JSON object.", hint="Download or write the file again."
        )
    return value


def _check_safetensors(path: Path) -> None:
    """Check a file's header against its length; the tensors themselves are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{path}' is not a whole safetensors file.",
            hint="Download it again: it is truncated or damaged.",
            facts=[f"seen: {error}"],
        ) from error
