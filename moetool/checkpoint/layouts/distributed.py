"""Checkpoints of torch.distributed.checkpoint, which FSDP and Megatron-Core write.

A pickle describes the tensors, which lie in files of all processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.checkpoint.headers.weight_files import list_some
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import DISTRIBUTED, MEGATRON, Layout
from moetool.checkpoint.pickled.interpreter import read_pickle
from moetool.checkpoint.pickled.stand_ins import ForbiddenNameError, Instance, PickleError
from moetool.checkpoint.pickled.torch_file import read_torch_value, refuse_name
from moetool.checkpoint.pickled.torch_names import TORCH_NAMES, find_dtype, read_shape, stand_ins
from moetool.errors import InputError

_METADATA = ".metadata"
_COMMON = "common.pt"
_MAX_BYTES = 512_000_000

_CLASSES = stand_ins(
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
            *("TensorProperties", "TensorStorageMetadata", "ChunkStorageMetadata"),
            "BytesStorageMetadata",
        )
    ),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
)
_TENSOR = "torch.distributed.checkpoint.metadata.TensorStorageMetadata"

# Programs keep the model and the state of its training in one checkpoint, under these first words.
_TRAINING = re.compile(
    r"(app\.|checkpoint\.)?(chained_\d+\.)?(optim(izers?)?|lr_scheduler|dataloader|rng_state)[._]"
)
# Megatron-Core joins a tensor of all layers into one, whose name has no number.
_STACKED_LAYERS = re.compile(r"(^|\.)layers\.(?!\d+\.)")
_MOST_LAYERS = 1_000
# Names that a config.json has for Megatron's arguments.
_ARGUMENTS = {
    "num_layers": "num_hidden_layers",
    "num_experts": "num_experts",
    "moe_router_topk": "num_experts_per_tok",
}


def read_distributed(folder: Path) -> FoundCheckpoint:
    """Return the tensors of a checkpoint of torch.distributed.checkpoint.

    Raises:
        InputError: A file is missing or broken, or the pickle names other classes.
    """
    tensors, files = _read_metadata(folder / _METADATA)
    return FoundCheckpoint(DISTRIBUTED, _join(tensors, files, folder=folder))


def read_megatron(folder: Path) -> FoundCheckpoint:
    """Return the tensors of a checkpoint of Megatron-Core, one for each layer, and its arguments.

    Raises:
        InputError: A file is missing or broken, or the pickle names other classes.
    """
    tensors, files = _read_metadata(folder / _METADATA)
    headers = _join(tensors, files, folder=folder)
    config, notes = _read_arguments(folder / _COMMON)
    try:
        layered = TensorHeaders(tuple(_split_layers(headers.tensors)), headers.file_bytes)
    except PickleError as error:
        raise _broken(folder / _METADATA, MEGATRON, seen=str(error)) from error
    return FoundCheckpoint(MEGATRON, layered, config, notes)


def _read_metadata(path: Path) -> tuple[list[TensorHeader], set[str]]:
    """Return the tensors that a `.metadata` describes, and the files that hold them."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise PickleError(f"it is longer than {_MAX_BYTES:,} bytes")
        whole, _ = read_pickle(content, names={**TORCH_NAMES, **_CLASSES})
        described = _read_state(whole, "state_dict_metadata")
        tensors = [
            _read_tensor(name, entry)
            for name, entry in _expect_dict(described).items()
            if isinstance(entry, Instance) and entry.kind == _TENSOR
        ]
        files = set(_list_files(_read_state(whole, "storage_data")))
    except ForbiddenNameError as error:
        raise refuse_name(path, error) from error
    except PickleError as error:
        raise _broken(path, DISTRIBUTED, seen=str(error)) from error
    except OSError as error:
        raise _broken(path, DISTRIBUTED, seen=error.strerror or str(error)) from error
    return [tensor for tensor in tensors if not _TRAINING.match(tensor.name)], files


def _read_tensor(name: object, entry: Instance) -> TensorHeader:
    """Return a tensor, checked against its chunks."""
    if not isinstance(name, str):
        raise PickleError("it has a tensor whose name is not a text")
    properties = _read_state(entry, "properties")
    state = properties.state if isinstance(properties, Instance) else None
    # Written either by `__getstate__`, the dtype first, or as fields.
    named = state[0] if isinstance(state, tuple) and state else _expect_dict(state).get("dtype")
    dtype = find_dtype(named)
    shape, num_elements = read_shape(_read_state(entry, "size"))
    chunks = _read_state(entry, "chunks")
    if not isinstance(chunks, list):
        raise PickleError("it has a tensor without a list of chunks")
    held = sum(read_shape(_read_state(chunk, "sizes"))[1] for chunk in chunks)
    if held != num_elements:
        raise PickleError(
            f"the parts of {name!r:.100} have {held} elements, and the tensor has {num_elements}"
        )
    return TensorHeader(name, dtype.name, shape, num_elements * dtype.itemsize, _METADATA)


def _list_files(stored: object) -> Iterator[str]:
    """Yield the files that hold chunks."""
    for entry in _expect_dict(stored).values():
        name = _read_state(entry, "relative_path")
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise PickleError("it names files outside the checkpoint")
        yield name


def _read_state(value: object, name: str) -> Any:
    """Return a field of a stand-in."""
    state = value.state if isinstance(value, Instance) else None
    if not isinstance(state, dict) or name not in state:
        raise PickleError(f"it has something without {name}")
    return state[name]


def _expect_dict(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise PickleError(f"it has a {type(value).__name__} in place of a dict")
    return value


def _join(tensors: list[TensorHeader], files: set[str], *, folder: Path) -> TensorHeaders:
    """Return the tensors with the bytes of the files, all of which must be there."""
    missing = sorted(name for name in files if not (folder / name).is_file())
    if missing:
        raise InputError(
            f"'{folder}' lacks {len(missing)} of its {len(files)} weight files.",
            hint="Copy the missing files into the folder.",
            facts=[f"missing: {list_some(missing)}"],
        )
    if not tensors:
        raise InputError(
            f"'{folder}' holds no tensors of a model.",
            hint="Name the folder that its training program saved the model in.",
        )
    sizes = {name: (folder / name).stat().st_size for name in sorted(files)}
    return TensorHeaders(tuple(tensors), sizes)


def _split_layers(tensors: Iterable[TensorHeader]) -> Iterator[TensorHeader]:
    """Yield a tensor for each layer, in place of one of all layers."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        found = _STACKED_LAYERS.search(tensor.name)
        if found is None:
            yield tensor
            continue
        before, after = tensor.name[: found.end()], tensor.name[found.end() :]
        num_layers = tensor.shape[0] if tensor.shape else 0
        if (
            not 0 < num_layers <= _MOST_LAYERS
            or counts.setdefault(before, num_layers) != num_layers
        ):
            raise PickleError(f"{tensor.name!r:.100} is of {num_layers} layers")
        for layer in range(num_layers):
            yield TensorHeader(
                f"{before}{layer}.{after}",
                tensor.dtype,
                tensor.shape[1:],
                tensor.num_bytes // num_layers,
                tensor.file,
            )


def _read_arguments(path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the arguments that Megatron was run with, or a note on why they are unknown."""
    if not path.is_file():
        return {}, ()
    try:
        value, _ = read_torch_value(path)
    except InputError as error:
        return {}, (f"The arguments of the run were not read: {error.message}",)
    arguments = value.get("args") if isinstance(value, dict) else None
    state = arguments.state if isinstance(arguments, Instance) else None
    stated = state if isinstance(state, dict) else {}
    config = {name: stated[own] for own, name in _ARGUMENTS.items() if own in stated}
    untied = stated.get("untie_embeddings_and_output_weights")
    if isinstance(untied, bool):
        config["tie_word_embeddings"] = not untied
    return config, ()


def _broken(path: Path, layout: Layout, *, seen: str) -> InputError:
    return InputError(
        f"'{path}' does not describe {layout.name}.",
        hint="Copy the checkpoint again: the file is damaged, or of another program.",
        facts=[f"seen: {seen}"],
    )
