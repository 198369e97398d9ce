"""The tensors of a file that `torch.save` wrote, without torch and without running its pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.checkpoint.pickled.interpreter import read_pickle
from moetool.checkpoint.pickled.stand_ins import ForbiddenNameError, PickleError
from moetool.checkpoint.pickled.state_dict import find_tensors
from moetool.checkpoint.pickled.torch_names import (
    TORCH_NAMES,
    PickledStorage,
    PickledTensor,
    load_storage,
)
from moetool.checkpoint.pickled.zip_entries import ZIP_START, ZipEntries, list_entries
from moetool.errors import InputError
from moetool.git_lfs import POINTER_START, refuse_pointer
from moetool.wording import number_of

# The longest pickle that is read: of a million tensors or so.
_MAX_PICKLE_BYTES = 256_000_000
# The pickle of this number opens the files that torch wrote before 1.6.
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5
_COUNT_BYTES = 8


class ExecutingPickleError(InputError):
    """A pickle names functions or classes that have nothing to do with tensors."""


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.

    Attributes:
        headers: The tensors of its state dict.
        others: The names of the other parts, such as the state of an optimizer.
    """

    headers: TensorHeaders
    others: tuple[str, ...]


def read_torch_file(path: Path, *, file: str) -> TorchFile:
    """Return the tensors of a file that `torch.save` wrote. Its pickle is read, and never run.

    Args:
        path: The path of the file.
        file: Its name in the checkpoint.

    Raises:
        InputError: The file can't be opened, is incomplete, or is not one of torch's.
        ExecutingPickleError: Its pickle names something that is not part of a tensor.
    """
    value, file_bytes = read_torch_value(path)
    try:
        tensors, others = find_tensors(value)
        headers = _describe(tensors, file=file)
    except PickleError as error:
        raise _broken_file(path, seen=str(error)) from error
    return TorchFile(TensorHeaders(headers, {file: file_bytes}), others)


def read_torch_value(path: Path) -> tuple[Any, int]:
    """Return the value in a file that `torch.save` wrote, and the bytes of the file.

    Raises:
        InputError: The file can't be opened, is incomplete, or is not one of torch's.
        ExecutingPickleError: Its pickle names something that has no stand-in.
    """
    try:
        with path.open("rb") as opened:
            file_bytes = os.fstat(opened.fileno()).st_size
            start = opened.read(len(POINTER_START))
            refuse_pointer(start, path=path)
            opened.seek(0)
            if start.startswith(ZIP_START):
                return _read_zip(opened, file_bytes), file_bytes
            if start.startswith(_LEGACY_START):
                return _read_legacy(opened, file_bytes), file_bytes
            raise PickleError("it begins neither as a zip archive nor as torch's older format")
    except ForbiddenNameError as error:
        raise refuse_name(path, error) from error
    except PickleError as error:
        raise _broken_file(path, seen=str(error)) from error
    except OSError as error:
        raise _broken_file(path, seen=error.strerror or str(error)) from error


def refuse_name(path: Path, error: ForbiddenNameError) -> ExecutingPickleError:
    """Return the error for a pickle that names something other than tensors."""
    return ExecutingPickleError(
        f"The pickle in '{path}' names {error.name}, which is not part of a tensor: loading it could "
        "run code, so it was not read further.",
        hint="Name a checkpoint in safetensors, or count by a config.json alone: --source skeleton.",
    )


def _broken_file(path: Path, *, seen: str) -> InputError:
    return InputError(
        f"'{path}' is not a complete file of torch.save.",
        hint="Download it again: it is truncated or damaged, or something else than weights.",
        facts=[f"seen: {seen}"],
    )


def _read_zip(file: BinaryIO, file_bytes: int) -> Any:
    """Return the value in a zip archive, after a check that it holds the data that it names."""
    entries = list_entries(file, file_bytes=file_bytes)
    content = entries.read("data.pkl", max_bytes=_MAX_PICKLE_BYTES)
    checked: dict[str, int] = {}

    def load(saved: object) -> PickledStorage:
        storage = load_storage(saved)
        if checked.setdefault(storage.key, storage.num_bytes) != storage.num_bytes:
            raise PickleError("it describes the same data with two sizes")
        _check_stored(entries, storage)
        return storage

    return read_pickle(content, names=TORCH_NAMES, load_storage=load)[0]


def _check_stored(entries: ZipEntries, storage: PickledStorage) -> None:
    num_bytes = entries.sizes.get(f"data/{storage.key}")
    if num_bytes is None:
        raise PickleError("it refers to data that the archive does not hold")
    if num_bytes != storage.num_bytes:
        raise PickleError(
            f"it describes {storage.num_bytes} bytes of data, where the archive holds {num_bytes}"
        )


def _read_legacy(file: BinaryIO, file_bytes: int) -> Any:
    """Return the value in a file of the format before torch 1.6.

    There are five pickles: a magic number, a version, the system's sizes, the value, and the keys of
    its storages. Then the data of each storage follows, each after a count of its elements.
    """
    content = file.read(_MAX_PICKLE_BYTES)
    storages: dict[str, PickledStorage] = {}

    def load(saved: object) -> PickledStorage:
        storage = load_storage(saved)
        if storages.setdefault(storage.key, storage) != storage:
            raise PickleError("it describes the same data in two ways")
        return storage

    values: list[Any] = []
    end = 0
    for _ in range(_LEGACY_PICKLES):
        value, end = read_pickle(content, names=TORCH_NAMES, load_storage=load, start=end)
        values.append(value)
    keys = values[-1]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleError("it has no list of its data")
    if sorted(keys) != sorted(storages):
        raise PickleError("its list of data is not that of its tensors")
    described = sum(storage.num_bytes + _COUNT_BYTES for storage in storages.values())
    found = file_bytes - end
    if described != found:
        raise PickleError(f"{found} bytes of data, where its tensors take {described}")
    return values[-2]


def _describe(tensors: dict[str, PickledTensor], *, file: str) -> tuple[TensorHeader, ...]:
    """Return the tensors of a state dict, each piece of data once.

    Raises:
        PickleError: Two tensors share some of their data.
    """
    by_storage: dict[str, dict[tuple[int, ...], tuple[str, PickledTensor]]] = {}
    for name, tensor in tensors.items():
        place = (tensor.offset, *tensor.shape, *tensor.strides)
        # A tied head has the embedding's own data. safetensors leaves it out.
        by_storage.setdefault(tensor.storage.key, {}).setdefault(place, (name, tensor))
    for held in by_storage.values():
        _check_apart([tensor for _, tensor in held.values()])
    return tuple(
        TensorHeader(name, tensor.dtype.name, tensor.shape, tensor.num_bytes, file)
        for held in by_storage.values()
        for name, tensor in held.values()
    )


def _check_apart(tensors: list[PickledTensor]) -> None:
    """Check that tensors of one storage share no data.

    Raises:
        PickleError: They do.
    """
    reached = 0
    for tensor in sorted(tensors, key=lambda each: each.offset):
        start = tensor.offset * tensor.dtype.itemsize
        if len(tensors) > 1 and tensor.num_elements and start < reached:
            raise PickleError(f"{number_of(len(tensors), 'tensor')} that share parts of their data")
        if tensor.end - tensor.offset < tensor.num_elements:
            raise PickleError("it has a tensor whose elements are the same data")
        reached = max(reached, tensor.end * tensor.dtype.itemsize)
