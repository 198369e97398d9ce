"""A GGUF model: one file, or all parts of a split one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetool.checkpoint.gguf.header import GgufHeader, GgufTensor, read_gguf_header
from moetool.checkpoint.headers.weight_files import list_some
from moetool.errors import InputError
from moetool.printable import printable

_SUFFIX = ".gguf"
# As `gguf-split` names parts, and as llama.cpp finds them.
_PART = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# A vision or audio tower, which llama.cpp loads next to a model.
_TOWER = re.compile(r"(^|[-._])mmproj([-._]|$)")
# What `general.type` calls files that hold no model, with what they are.
_OTHER_KINDS = {
    "imatrix": (
        "an importance matrix",
        "Name the model's GGUF file; `moetool import imatrix` reads importance matrices.",
    ),
    "adapter": ("a LoRA adapter", "Name the GGUF file of the model that it changes."),
    "vocab": ("a vocabulary", "Name the model's GGUF file."),
}


@dataclass(frozen=True)
class GgufModel:
    """The headers of all files of a model.

    Attributes:
        path: The file, or the first part.
        metadata: Of the first part; a `LongList` in place of a long list.
        parts: The header of each file, in order.
    """

    path: Path
    metadata: Mapping[str, Any]
    parts: tuple[GgufHeader, ...]

    @property
    def tensors(self) -> tuple[GgufTensor, ...]:
        """The tensors of all files, in order."""
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        return str(self.metadata["general.architecture"])

    def read(self, key: str) -> Any:
        """Return a value of the architecture's own; None if there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def read_count(self, key: str) -> int | None:
        """Return a whole number of the architecture's own; None if there is none."""
        value = self.read(key)
        return value if type(value) is int and value >= 0 else None


def has_gguf_only(folder: Path) -> bool:
    """Return whether a folder holds GGUF files and no configuration of transformers."""
    return "config.json" not in (names := _list_names(folder)) and any(map(_is_gguf, names))


def find_lone_gguf(folder: Path) -> Path | None:
    """Return the one GGUF model of a folder without other weights; None if there is not just one."""
    names = _list_names(folder)
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return None
    models = _list_models(names)
    return folder / models[0] if len(models) == 1 else None


def _find_model(folder: Path) -> Path:
    models = _list_models(_list_names(folder))
    if len(models) != 1:
        what = f"{len(models)} GGUF models" if models else "no GGUF file"
        raise InputError(
            f"'{printable(folder)}' holds {what}.",
            hint="Name one of the files." if models else "Name the file.",
            facts=[f"seen: {list_some(models)}"] if models else (),
        )
    return folder / models[0]


def _list_models(names: Iterable[str]) -> list[str]:
    """Return a file of each model; towers next to a model are passed over."""
    models: dict[str, str] = {}
    for name in sorted(filter(_is_gguf, names)):
        part = _PART.fullmatch(name)
        models.setdefault(part["prefix"] if part else name, name)
    bare = [name for name in models.values() if not _TOWER.search(name.lower())]
    return bare or list(models.values())


def _is_gguf(name: str) -> bool:
    return name.endswith(_SUFFIX)


def _list_names(folder: Path) -> list[str]:
    # A folder that can't be listed is refused when its files are opened.
    with suppress(OSError):
        return [entry.name for entry in os.scandir(folder) if entry.is_file()]
    return []


def open_gguf(path: Path) -> GgufModel:
    """Return the headers of a model.

    Args:
        path: Its file, any part of a split one, or a folder with one model.

    Raises:
        InputError: A file is missing or broken, parts contradict each other, or there is no model.
    """
    if os.path.isdir(path):
        path = _find_model(path)
    return join_parts(path, read_gguf_header, os.path.isfile)


def join_parts(
    path: Path, read: Callable[[Path], GgufHeader], is_present: Callable[[Path], bool]
) -> GgufModel:
    """Return the headers of a model.

    Args:
        path: Its file, or any part of a split one.
        read: Returns the header of a file.
        is_present: Returns whether there is a file.

    Raises:
        InputError: A file is missing, parts contradict each other, or there is no model.
    """
    named = read(path)
    if named.metadata.get("split.count", 0) in (0, 1):
        return _check(GgufModel(path, named.metadata, (named,)))
    count = named.metadata["split.count"]
    names = _list_parts(path, count)
    missing = [name for name in names if not is_present(path.parent / name)]
    if missing:
        raise InputError(
            f"'{printable(path.parent)}' lacks {len(missing)} of the {count} parts of a GGUF file.",
            hint="Download the missing parts into the folder.",
            facts=[f"missing: {list_some(missing)}"],
        )
    parts = [named if name == path.name else read(path.parent / name) for name in names]
    for number, part in enumerate(parts):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise _contradiction(part.path, f"it is not part {number + 1} of {count}")
    return _check(GgufModel(path.parent / names[0], parts[0].metadata, tuple(parts)))


def _list_parts(path: Path, count: object) -> list[str]:
    """Return the names of all parts, of which a file is one."""
    found = _PART.fullmatch(path.name)
    if type(count) is not int or found is None or int(found["count"]) != count:
        raise InputError(
            f"'{printable(path)}' is a part of a split GGUF file, but its name doesn't say which.",
            hint="Name parts as gguf-split does: NAME-00001-of-00003.gguf.",
        )
    prefix = found["prefix"]
    return [f"{prefix}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _check(model: GgufModel) -> GgufModel:
    """Check that files hold one whole model."""
    metadata, path = model.metadata, printable(model.path)
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in _OTHER_KINDS:
        what, hint = _OTHER_KINDS[kind]
        raise InputError(f"'{path}' holds {what}, not a model.", hint=hint)
    if not isinstance(metadata.get("general.architecture"), str):
        raise InputError(
            f"'{path}' doesn't state a model's architecture.", hint="Name a model's GGUF file."
        )
    names = [tensor.name for tensor in model.tensors]
    stated = metadata.get("split.tensors.count", len(names))
    if stated != len(names):
        raise _contradiction(path, f"they hold {len(names)} tensors of {stated}")
    if len(set(names)) < len(names):
        raise _contradiction(path, "two parts hold tensors of the same name")
    if not names:
        raise InputError(
            f"'{path}' holds a vocabulary without tensors, not a model.",
            hint="Name the model's GGUF file.",
        )
    return model


def _contradiction(path: str, seen: str) -> InputError:
    return InputError(
        f"The parts of '{printable(path)}' do not belong together.",
        hint="Download all parts of one model again.",
        facts=[f"seen: {seen}"],
    )


def list_file_bytes(model: GgufModel) -> dict[str, int]:
    """Return the bytes of each file, header included, by name."""
    return {Path(part.path).name: part.file_bytes for part in model.parts}
