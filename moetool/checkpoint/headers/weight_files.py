"""The weight files among the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import PureWindowsPath

from moetool.errors import InputError

_SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"


class MissingWeightsError(InputError):
    """An index names weight files that are not there."""


class PickledWeightsError(InputError):
    """Weights are pickled, where only safetensors are read."""


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's weights.

    Attributes:
        names: In order; none if there are no weights.
        weight_map: The file of every tensor, according to the index; None without an index.
    """

    names: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None

    def check_safetensors(self, label: str, *, hint: str) -> None:
        """Check that none of them is a pickle.

        Args:
            label: The folder or repository, for error messages.
            hint: What to do if there is one.

        Raises:
            PickledWeightsError: At least one is.
        """
        if any(not name.endswith(".safetensors") for name in self.names):
            raise PickledWeightsError(
                f"'{label}' holds pickled weights, where only safetensors can be read.",
                hint=hint,
                facts=[f"seen: {list_some(self.names)}"],
            )


def choose_weight_files(
    names: Collection[str],
    *,
    label: str,
    is_present: Callable[[str], bool],
    read_index: Callable[[str], Mapping[str, object]],
) -> WeightFiles:
    """Return the weight files among a checkpoint's files, safetensors before pickled ones.

    An index takes precedence over other files of its kind, then `model.safetensors` does.

    Args:
        names: Of the files in the folder, not those in folders inside it.
        label: The folder or repository, for error messages.
        is_present: Returns whether a file that an index names exists.
        read_index: Returns the JSON object in a file.

    Raises:
        MissingWeightsError: An index names files that are missing.
        InputError: An index is broken, or names files outside the checkpoint.
    """
    loose = sorted(name for name in names if name.endswith(".safetensors"))
    if _SAFETENSORS_INDEX in names:
        index = _SAFETENSORS_INDEX
    elif _SAFETENSORS in names:
        return WeightFiles((_SAFETENSORS,))
    elif loose:
        return WeightFiles(tuple(loose))
    elif _PICKLED_INDEX in names:
        index = _PICKLED_INDEX
    else:
        return WeightFiles((_PICKLED,) if _PICKLED in names else ())
    return read_indexed_files(
        f"{label}/{index}", read_index(index), label=label, is_present=is_present
    )


def read_indexed_files(
    path: str,
    index: Mapping[str, object],
    *,
    label: str,
    is_present: Callable[[str], bool],
) -> WeightFiles:
    """Return the weight files that an index names.

    Args:
        path: The index, for error messages.
        index: The JSON object in it.
        label: The folder or repository, for error messages.
        is_present: Returns whether a file exists.

    Raises:
        MissingWeightsError: Files are missing.
        InputError: The index is broken, or names files outside the checkpoint.
    """
    weight_map = _read_weight_map(path, index)
    files = tuple(sorted(set(weight_map.values())))
    missing = [name for name in files if not is_present(name)]
    if missing:
        raise MissingWeightsError(
            f"'{label}' lacks {len(missing)} of its {len(files)} weight files.",
            hint="Download the missing files into the folder.",
            facts=[f"missing: {list_some(missing)}"],
        )
    return WeightFiles(files, weight_map)


def list_some(names: Collection[str]) -> str:
    """Return the first three of some names, in one printable line."""
    # A name from a file may contain anything.
    shown = [name if name.isprintable() else repr(name) for name in islice(names, 3)]
    return ", ".join(f"{name:.100}" for name in shown) + (", …" if len(names) > 3 else "")


def _read_weight_map(path: str, index: Mapping[str, object]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise InputError(
            f"'{path}' has no weight_map of names.", hint="Download the file again: it is broken."
        )
    outside = sorted(name for name in set(weight_map.values()) if _leads_outside(name))
    if outside:
        raise InputError(
            f"'{path}' names files outside the checkpoint.",
            hint="Do not use this checkpoint: an honest index only names files next to itself.",
            facts=[f"seen: {list_some(outside)}"],
        )
    return weight_map


def _leads_outside(name: str) -> bool:
    # Windows' rules are stricter: they know both slashes, and drives.
    path = PureWindowsPath(name)
    return bool(path.anchor) or ".." in path.parts
