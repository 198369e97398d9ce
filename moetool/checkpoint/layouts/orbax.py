"""Checkpoints of Orbax, which Flax and MaxText write: a Zarr array for each parameter."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

from moetool.checkpoint.files import read_json
from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import ORBAX, list_names
from moetool.checkpoint.layouts.ocdbt import MANIFEST, read_descriptions
from moetool.checkpoint.strict_json import JsonError, parse_json
from moetool.errors import InputError

_ZARR_2, _ZARR_3 = ".zarray", "zarr.json"
_ENDINGS = (f"/{_ZARR_2}", f"/{_ZARR_3}")
_MAX_SIZE = 2**63 - 1
_MOST_DIMENSIONS = 32
_MOST_LAYERS = 1_000

# Data types of Zarr, by safetensors' names and bytes. The second version has NumPy's words.
_DTYPES = {
    **dict.fromkeys(("<f8", "float64"), ("F64", 8)),
    **dict.fromkeys(("<f4", "float32"), ("F32", 4)),
    **dict.fromkeys(("<f2", "float16"), ("F16", 2)),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    **dict.fromkeys(("<i8", "int64"), ("I64", 8)),
    **dict.fromkeys(("<i4", "int32"), ("I32", 4)),
    **dict.fromkeys(("<i2", "int16"), ("I16", 2)),
    **dict.fromkeys(("|i1", "int8"), ("I8", 1)),
    **dict.fromkeys(("<u4", "uint32"), ("U32", 4)),
    **dict.fromkeys(("|u1", "uint8"), ("U8", 1)),
    **dict.fromkeys(("|b1", "bool"), ("BOOL", 1)),
}

_TRAINING = re.compile(r"(opt_state|step|rngs?|opt_vars|data_iterator)(\.|$)")
_PREFIX = re.compile(r"^(params\.)+")
# MaxText's names, and those that the parts of other models have.
_NAMES = (
    (re.compile(r"^token_embedder\.embedding$"), "embed_tokens.weight"),
    (re.compile(r"^decoder\.logits_dense\."), "lm_head."),
    (re.compile(r"(^|\.)(layers|dense_layers|moe_layers)_(\d+)\."), r"\1\2.\3."),
    (re.compile(r"(MoeBlock_\d+)\.(wi_\d|wi|wo)(\.|$)"), r"\1.experts.\2\3"),
)
# Layers that MaxText joins into one array, whose names have no number. Dense ones come first.
_STACKED = re.compile(r"^decoder\.(dense_layers|moe_layers|layers)\.(?!\d+\.)")
_STACKS = ("dense_layers", "moe_layers", "layers")


def read_orbax(folder: Path) -> FoundCheckpoint:
    """Return the arrays of a checkpoint of Orbax, one for each layer.

    Raises:
        InputError: An array or the database of them is broken.
    """
    if (folder / MANIFEST).is_file():
        tensors, sizes = _read_database(folder)
    else:
        arrays = [name for name in list_names(folder) if _find_header(folder / name)]
        tensors = [_read_array(folder / name) for name in arrays]
        sizes = {name: sum(_list_sizes(folder / name)) for name in arrays}
    tensors = [tensor for tensor in tensors if not _TRAINING.match(tensor.name)]
    if not tensors:
        raise InputError(
            f"'{folder}' is {ORBAX.name} without arrays of a model.",
            hint="Name the folder that holds the arrays: often `0/items`, `default` or `params`.",
        )
    named = [replace(tensor, name=_rename(tensor.name)) for tensor in tensors]
    return FoundCheckpoint(ORBAX, TensorHeaders(tuple(_split_layers(named, folder)), sizes))


def _find_header(path: Path) -> Path | None:
    return next((path / name for name in (_ZARR_2, _ZARR_3) if (path / name).is_file()), None)


def _read_array(path: Path) -> TensorHeader:
    """Return the array in a folder, by its description."""
    header = _find_header(path)
    assert header is not None
    return _as_tensor(path.name, read_json(header, missing=""), path=header)


def _read_database(folder: Path) -> tuple[list[TensorHeader], dict[str, int]]:
    """Return the arrays in files of OCDBT, and the bytes of those files."""
    found = read_descriptions(folder, is_wanted=lambda key: key.endswith(_ENDINGS))
    tensors = []
    for key, content in found.items():
        name = key.rpartition("/")[0]
        try:
            stated = parse_json(content)
        except JsonError as error:
            raise _broken(folder / MANIFEST, seen=f"{key:.100}: {error}") from error
        tensors.append(_as_tensor(name, stated, path=folder / MANIFEST))
    parts = [name for name in list_names(folder) if name == "d" or name.startswith("ocdbt.process")]
    sizes = {name: sum(_list_sizes(folder / name)) for name in parts}
    return tensors, {MANIFEST: (folder / MANIFEST).stat().st_size, **sizes}


def _as_tensor(name: str, stated: object, *, path: Path) -> TensorHeader:
    """Return an array by the JSON that describes it, which `path` holds."""
    fields = stated if isinstance(stated, dict) else {}
    kind = fields.get("dtype", fields.get("data_type"))
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    shape = fields.get("shape")
    if dtype is None or not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _broken(path, seen=f"{name:.100}: dtype {kind!r:.40}, shape {shape!r:.80}")
    num_elements = prod(shape)
    if num_elements > _MAX_SIZE or len(shape) > _MOST_DIMENSIONS:
        raise _broken(path, seen=f"{name:.100}: more elements than 64 bits can count")
    return TensorHeader(name, dtype[0], tuple(shape), num_elements * dtype[1], path.name)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


def _broken(path: Path, *, seen: str) -> InputError:
    return InputError(
        f"'{path}' does not describe an array of a model.",
        hint="Copy the checkpoint again: the file is damaged, or of another program.",
        facts=[f"seen: {seen}"],
    )


def _rename(name: str) -> str:
    name = _PREFIX.sub("", name)
    for pattern, own in _NAMES:
        name = pattern.sub(own, name)
    return name


def _split_layers(tensors: list[TensorHeader], folder: Path) -> Iterator[TensorHeader]:
    """Yield an array for each layer, in place of one of all layers.

    The axis of layers is the one along which all arrays of a stack have the same size, if there is
    only one such axis.
    """
    stacks: dict[str, list[TensorHeader]] = {}
    for tensor in tensors:
        found = _STACKED.match(tensor.name)
        if found is None:
            yield tensor
        else:
            stacks.setdefault(found[1], []).append(tensor)
    first = 0
    for stack in _STACKS:
        held = stacks.get(stack, [])
        if held:
            axis, num_layers = _find_axis(held, folder)
            yield from _number(held, stack, axis=axis, layers=range(first, first + num_layers))
            first += num_layers


def _find_axis(tensors: Iterable[TensorHeader], folder: Path) -> tuple[int, int]:
    """Return the axis of layers, and their number."""
    shapes = [tensor.shape for tensor in tensors]
    found = []
    for axis in (0, 1):
        sizes = {shape[axis] if axis < len(shape) else 0 for shape in shapes}
        if len(sizes) == 1 and 0 < min(sizes) <= _MOST_LAYERS:
            found.append((axis, sizes.pop()))
    if len(found) != 1:
        raise InputError(
            f"'{folder}' joins the arrays of several layers, and their shapes don't show along which "
            "axis.",
            hint="Save it with scan_layers=false, as MaxText's conversions do.",
        )
    return found[0]


def _number(
    tensors: Iterable[TensorHeader], stack: str, *, axis: int, layers: range
) -> Iterator[TensorHeader]:
    for tensor in tensors:
        rest = _STACKED.sub("", tensor.name)
        shape = tensor.shape[:axis] + tensor.shape[axis + 1 :]
        num_bytes = tensor.num_bytes // len(layers)
        for layer in layers:
            name = f"decoder.{stack}.{layer}.{rest}"
            yield replace(tensor, name=name, shape=shape, num_bytes=num_bytes)


def _list_sizes(folder: Path) -> Iterator[int]:
    """Yield the bytes of all files in a folder. Links are not followed."""
    for parent, _, files in os.walk(folder):
        for file in files:
            yield os.lstat(os.path.join(parent, file)).st_size
